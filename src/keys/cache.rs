//! Data-key cache: LRU by wrapped bytes, single flight.
