//! Tests of the whole: the real binary, over HTTP and the command line, against oracles that share no code with it.

mod across;
mod changelog;
mod cli;
mod cluster;
#[path = "../serving/src/tests/contract.rs"]
mod contract;
mod crash;
mod damage;
mod docs;
mod edge;
mod edges;
mod edition;
mod emission;
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
