"""From text on disk to the batches of a training step.

    corpus.py    documents from folders and files, or from the Python interpreter itself
    folder.py    the files of a folder, and a tally of what is read and left out
    formats.py   Document(text, source), or why there is none; UTF-8 text;  suffixes.py  of files
    json_rows.py, tables.py, parquet.py, arrow.py   JSON (lines, array, object); CSV, TSV; columns
    tar.py, compression.py   members of webdataset tars; gzip to xz
    prepare.py   tokenised documents as webdataset tars with an index;  pool.py  by many processes
    units.py     the units of work that they are given;  merge.py  joins their results
    shards.py    verify, stats
    writer.py    writes one split
    index.py     the index of a split: what is in its folder
    records.py   documents.idx: where each document is stored, memory-mapped and checked
    reader.py    random access to the tokens of one document, checked
    splits.py    the same interface to a split in a folder and to one on an object store
    store.py     files on an object store, with retries
    cache.py     pieces of them on a local disk: bounded, shared by the ranks of a host
    open_files.py  keeps a bounded number of files open
    splitmix.py  random numbers as a function of a key and a counter
    order.py     which document is drawn at position j: a pure function of (seed, j)
    upcoming.py  looks up the next documents of lanes, many at a time
    lanes.py     which tokens of which documents each row of a batch holds: lengths only
    rows.py      reads those tokens and lays them out as a Batch
    stream.py    TextStream: batches for one rank, exact resume at any rank count
    heldout.py   the fixed batches on which a run is evaluated
    mixture.py   what each corpus of a mixture really contributes to a run
    prefetch.py  a thread that stays a few batches ahead of the trainer
    progress.py  progress of a long job
    batch.py     Batch: rows of windows, what is scored, where documents begin
    source.py    BatchSource: the interface of any stream of batches

Preparing, once:

    folder, .jsonl, .parquet      corpus.Corpus                one file or row: one Document
      +- Document                 tokenizer.encode_many()      one document: n ids
          +- ids                  prepare.prepare()            by hash of the text: train/, heldout/
              +- shard-000000.tar     webdataset samples of one document, or of several short ones
                 documents.idx        where each document's ids are, how many, and their crc32
                 index.json           shards, totals, hashes, the tokenizer's fingerprint

Training, on every rank. B rows (lanes) in the global batch, W windows of L tokens in a row:

    draw j = 0, 1, 2, ...         order.Order                  corpus by weight, its permutation
      +- lane j mod B             lanes.isolate(), stitch()    this rank's B / ranks, lengths only
          +- row of W windows                                  [doc EOS PAD], [doc EOS doc EOS doc]
              +- tokens           reader.Shards.document(), from splits.Split
                  +- Batch        stream.TextStream.next()     through a prefetch thread

State of the stream: steps taken, and for each lane (documents used up, tokens used of the next
one). Nothing else is needed to resume at the exact token. A rank knows this for its own lanes; a
checkpoint has all lanes, and any number of ranks can resume from it.
"""
