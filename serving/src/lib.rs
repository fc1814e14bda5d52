//! anabranch-serving
