//! anabranch-batch-layer
