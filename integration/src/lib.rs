//! End-to-end tests of overlayd: the test beds they share.

pub mod pcap;
pub mod tshark;
