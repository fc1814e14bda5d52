//! anabranch-speed-layer
