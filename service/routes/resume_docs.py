"""What the API document says of coming back to a stream."""

from service.openapi import EVENT_STREAM, Content, Operation, Reply

RESUME_OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/streams/{stream_id}",
        summary="Come back to a stream",
        description="A stream that was asked for with `X-Resumable: true` names itself in the "
        "header `X-Stream-Id` and gives every event an id, `id: {stream_id}:{number}`. It goes on "
        "without its client for half a minute by default. Whoever comes back here, with the last "
        "id in `Last-Event-ID` as an `EventSource` does by itself, gets every event behind it "
        "once, whichever process has died meanwhile; without the header, all of them. A stream "
        "that ends without its dialect's last event was cut by its process: come back. When "
        "nothing is left to tell, the status is 204, which ends an `EventSource`.",
        replies={
            200: Reply(
                "The events, in the dialect of the request.",
                (Content(EVENT_STREAM, {}),),
            ),
            204: Reply("The stream has ended, and all of it was told."),
            400: Reply("`Last-Event-ID` is none of this stream's."),
            404: Reply(
                "There is no such stream, it was over for too long, or it is another key's."
            ),
        },
        tag="streams",
    ),
)
