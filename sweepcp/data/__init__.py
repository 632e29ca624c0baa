"""From the files of a source to its token store, and from token stores to the batches of a run."""
