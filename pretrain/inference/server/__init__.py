"""The server: OpenAI's APIs over HTTP, on persistent sessions. `hypnos serve` starts it.

    run.py            the process                    app.py       routes, keys, limits, errors
    completions.py    continues a text               chats.py     continues a resent history
    responses.py      responses with ids             conversations.py  names for chains of them
    schemas.py        request bodies                 wire.py      response bodies
    errors.py         error responses                http.py      owners, disconnects, streams
    answer.py         one request's answers          engine.py    the one thread that runs the model
    job.py            the engine's jobs and events   keep.py      stores sessions after answers
    service.py        where an answer starts         store.py     sessions on disk
    digests.py        how a history is found         meters.py    Prometheus metrics
    warm.py           warm-up before listening       page.html    a page to talk to the model

A request's path: a route validates it and makes a `Start` (a session, new or from the store, and
the tokens that it has to read); `Answers` queues jobs for the engine and yields their text as it
comes; a `Keeper` stores the session under the answer's id, on disk before the client gets the id.
"""
