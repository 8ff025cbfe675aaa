//! Wire formats, checksums, segmentation and encapsulation of overlayd's packet path.
#![forbid(unsafe_code)]
