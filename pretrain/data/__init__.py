"""From text on disk to the batches of a training step.

    corpus.py    documents of folders and files, or of the Python interpreter itself
    folder.py    the files of a folder, and a count of all that is read and left out
    formats.py   Document(text, source), or why there is none; UTF-8 text
    json_rows.py, tables.py, parquet.py, arrow.py   JSON (lines, array, object); CSV, TSV; columns
    tar.py, compression.py   members of webdataset tars; gzip to xz
    prepare.py   tokenised documents as webdataset tars with an index;  pool.py  by many processes
    units.py     the pieces of a corpus that they share out;  merge.py  and how these become one
    shards.py    verify, stats
    writer.py    one split as it is written
    index.py     what lies in a split's folder, and the checks on reading it
    records.py   documents.idx: where each document lies, mapped and checked
    reader.py    one document's tokens by number, checked, without reading its neighbours
    splits.py    a split in a folder, or on an object store: to its reader they are alike
    store.py     objects of a store, asked for until it answers
    cache.py     pieces of them on a local disk: bounded, shared by the ranks of a host
    open_files.py  files that are read again and again, of which only so many may be open
    splitmix.py  random numbers as a function of a key and a counter
    order.py     which document is drawn at position j: a pure function of (seed, j)
    upcoming.py  the next documents of some lanes, looked up many at a time
    lanes.py     which tokens of which documents each row of a batch holds: lengths only
    rows.py      those tokens, read and laid out as a Batch
    stream.py    TextStream: batches for one rank, exact resume at any rank count
    heldout.py   the fixed batches that a run is judged on
    mixture.py   what each corpus of a mixture really gives to a run
    prefetch.py  a thread that stays a few batches ahead, and how long the trainer waited for it
    progress.py  how far a long job is
    batch.py     Batch: rows of windows, what is scored, where documents begin
    source.py    BatchSource: what the trainer asks of any stream of batches

Preparing, once:

    folder, .jsonl, .parquet      corpus.Corpus                one file or row: one Document
      +- Document                 tokenizer.encode_many()      one document: n ids
          +- ids                  prepare.prepare()            by hash of the text: train/, heldout/
              +- shard-000000.tar     webdataset samples of one document, or of several short ones
                 documents.idx        where each document's ids lie, how many, and their crc32
                 index.json           shards, totals, hashes, the tokenizer's fingerprint

Training, on every rank. B rows (lanes) in the global batch, W windows of L tokens in a row:

    draw j = 0, 1, 2, ...         order.Order                  corpus by weight, its permutation
      +- lane j mod B             lanes.isolate(), stitch()    this rank's B / ranks, lengths only
          +- row of W windows                                  [doc EOS PAD], [doc EOS doc EOS doc]
              +- tokens           reader.Shards.document(), from splits.Split
                  +- Batch        stream.TextStream.next()     through a prefetch thread

State of the stream: steps taken, and for each lane (documents used up, tokens used of the next
one). Nothing else is needed to go on at the exact token. A rank knows this of its own lanes; a
checkpoint puts all together, and any number of ranks can take them up.
"""
