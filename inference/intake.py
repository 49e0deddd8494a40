"""From a ticket to a request and its sequences, or to the reason why there is none.

Clients' mistakes are found on the web side, before the wire: what is found here is a fault of ours,
or a limit that only the engine knows.
"""

from inference.backlog import Ticket
from inference.protocol import Generate, Limits, ModelFacts, RefusalCode, Refused
from inference.sequence import Owner, Request, Sequence
from inference.spans import PromptInvalid, VisualLayout, locate_spans

# One priority class ahead is worth this head start: classes order requests without starving any.
SECONDS_PER_PRIORITY = 10.0


def make_request(
    owner: Owner, ticket: Ticket, model: ModelFacts, limits: Limits
) -> Request | Refused:
    """Check what was asked for, and make the request with its sequences."""
    generate = ticket.generate
    if (refused := _check_length(generate, model, limits)) is not None:
        return refused
    try:
        _check_tokens(generate, model, limits)
        layout = VisualLayout.of(model)
        spans = locate_spans(generate.prompt_token_ids, generate.visions, layout)
    except PromptInvalid:
        return Refused(request_id=generate.request_id, code=RefusalCode.INPUT_INVALID)
    request = Request(
        owner=owner,
        request_id=generate.request_id,
        prompt_token_ids=generate.prompt_token_ids,
        sampling=generate.sampling,
        visions=generate.visions,
        spans=spans,
        tenant=generate.tenant,
        rank=ticket.arrival_time + generate.priority * SECONDS_PER_PRIORITY,
        arrival_time=ticket.arrival_time,
        account=ticket.account,
        priority=generate.priority,
        weight=ticket.weight,
        deadline=ticket.deadline,
        is_suspect=generate.is_suspect,
        traceparent=generate.traceparent,
    )
    indices = generate.sequence_indices or range(generate.num_sequences)
    prefixes = generate.output_prefixes or [[]] * generate.num_sequences
    request.sequences = [
        Sequence(request, index, limits.block_size, list(prefix))
        for index, prefix in zip(indices, prefixes, strict=True)
    ]
    return request


def _check_length(generate: Generate, model: ModelFacts, limits: Limits) -> Refused | None:
    """Refuse what would not fit the context, or the pool when it is alone there."""
    longest = [generate.sampling.max_tokens, *(len(prefix) for prefix in generate.output_prefixes)]
    needed = len(generate.prompt_token_ids) + max(longest)
    # One block is padding's.
    allowed = min(model.max_model_len, (limits.num_blocks - 1) * limits.block_size)
    if needed <= allowed:
        return None
    return Refused(
        request_id=generate.request_id,
        code=RefusalCode.CONTEXT_LENGTH_EXCEEDED,
        needed=needed,
        allowed=allowed,
    )


def _check_tokens(generate: Generate, model: ModelFacts, limits: Limits) -> None:
    """Compare a request's tokens and sequences with each other and with the model.

    Raises:
        PromptInvalid: they contradict each other.
    """
    prefixes, indices = generate.output_prefixes, generate.sequence_indices
    if not generate.prompt_token_ids or generate.sampling.max_tokens < 1:
        raise PromptInvalid("nothing to do")
    if not 1 <= generate.num_sequences <= limits.max_num_seqs:
        raise PromptInvalid("more sequences than can run together, or none")
    if len(prefixes) not in (0, generate.num_sequences):
        raise PromptInvalid("prefixes and sequences differ in number")
    if len(indices) not in (0, generate.num_sequences) or len(set(indices)) < len(indices):
        raise PromptInvalid("the sequences' indices do not tell them apart")
    if min(indices, default=0) < 0:
        raise PromptInvalid("a sequence's index is negative")
    if any(len(prefix) >= generate.sampling.max_tokens for prefix in prefixes):
        raise PromptInvalid("a prefix leaves nothing to generate")
    for token_ids in (generate.prompt_token_ids, *prefixes):
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < model.vocab_size:
            raise PromptInvalid("a token id is outside the vocabulary")
