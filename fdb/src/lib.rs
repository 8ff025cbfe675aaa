//! overlayd's tables: RIB, FIB, next hops and the snapshots that readers load without locks.
#![forbid(unsafe_code)]
