"""What an operator wants to know before starting: which model, on which device, does it fit.

Composes the checkpoint's facts and the memory plan; loads no weights.
"""

from collections.abc import Callable

import msgspec

from inference.architecture import Architecture, describe
from inference.checkpoint import model_facts, resolve_checkpoint
from inference.checkpoint_json import CheckpointError, read_architecture
from inference.config import EngineConfig
from inference.device import DeviceError, device_memory, resolve_device
from inference.memory import MemoryPlan, ModelTooLarge, plan_memory
from inference.protocol import ModelFacts


class ModelCheck(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on a configuration: it can be served when there are no problems.

    summary: the architecture in one line. facts, plan: None as far as a problem kept them from
    being found. problems: sentences for a person, each naming what to do. notes: what works but
    may surprise.
    """

    summary: str = ""
    facts: ModelFacts | None = None
    plan: MemoryPlan | None = None
    problems: list[str] = []
    notes: list[str] = []


def check_model(config: EngineConfig, progress: Callable[[str], None]) -> ModelCheck:
    """Judge whether this configuration can be served, fetching small files at most."""
    try:
        path = resolve_checkpoint(config, progress, with_weights=False)
        architecture = read_architecture(path)
        facts = model_facts(architecture, config, path)
    except CheckpointError as error:
        return ModelCheck(problems=[str(error)])
    summary = describe(architecture)
    try:
        device = resolve_device(config.device)
        config = msgspec.structs.replace(config, device=device)
        memory = device_memory(device, spread=config.device_map is not None)
        plan = plan_memory(architecture, config, memory, device)
    except (DeviceError, ModelTooLarge) as error:
        return ModelCheck(summary=summary, facts=facts, problems=[str(error)])
    facts = msgspec.structs.replace(facts, device=device, max_model_len=plan.max_model_len)
    notes = _notes(architecture, facts, config)
    return ModelCheck(summary=summary, facts=facts, plan=plan, notes=notes)


def _notes(architecture: Architecture, facts: ModelFacts, config: EngineConfig) -> list[str]:
    notes: list[str] = []
    allowed = architecture.text.max_position_embeddings
    if (config.max_model_len or 0) > allowed:
        notes.append(f"--max-model-len is cut to the model's own {allowed} tokens")
    if facts.max_model_len < allowed:
        notes.append(f"requests may take {facts.max_model_len} tokens; the model allows {allowed}")
    picture_tokens = facts.max_pixels // (facts.patch_size * facts.merge_size) ** 2
    if 2 * picture_tokens > facts.max_model_len:
        notes.append(
            f"the largest picture takes {picture_tokens} of {facts.max_model_len} tokens; "
            "--max-pixels makes pictures smaller"
        )
    return notes
