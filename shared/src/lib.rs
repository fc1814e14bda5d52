//! anabranch-shared
