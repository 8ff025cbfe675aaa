//! (rooms are being built)
