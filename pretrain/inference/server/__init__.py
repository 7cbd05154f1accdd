"""The server: OpenAI's APIs over HTTP, on sessions that last. `hypnos serve` starts it.

    run.py            the process                    app.py       routes, keys, limits, errors
    completions.py    a text is continued            chats.py     a history is resent
    responses.py      a response has an id           conversations.py  a name for a chain of them
    schemas.py        what may be asked              wire.py      what is answered
    errors.py         what is refused                http.py      who asks, and is still there
    answer.py         one request's answers          engine.py    the one thread that has the model
    job.py            what the engine is asked       keep.py      what an answer leaves
    service.py        where an answer begins         store.py     sessions on disk
    digests.py        how a history is found         meters.py    what it counts and times
    warm.py           before it listens              page.html    a page to talk to the model

A request's way: a route checks it and makes a `Start` (a session, fresh or from the store, and the
tokens that it has to read); `Answers` queues jobs for the engine and gives their text as it comes;
a `Keeper` stores the session under the answer's id, on disk before the id is told.
"""
