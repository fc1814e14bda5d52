//! Tests of the whole: the real binary, over HTTP and the command line, against oracles that share no code with it.

mod cli;
mod cluster;
mod crash;
mod damage;
mod edge;
mod edges;
mod edition;
mod erasure;
mod faults;
mod grid;
mod identity;
mod ingest;
mod kafka;
mod observe;
mod oracle;
mod output;
mod produce;
mod python;
mod random;
mod retention;
mod runs;
mod s3;
mod scenarios;
mod stream;
mod support;
mod upgrade;
