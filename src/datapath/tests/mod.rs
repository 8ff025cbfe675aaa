//! Tests of the stages: bytes and tables in, bytes and counts out, no device and no socket.

mod allocation;
mod balance;
mod corpus;
mod icmp;
mod joins;
mod outbound;
mod receive;
mod superpackets;
mod trains;
