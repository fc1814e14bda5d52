//! The command line's parts, and the assembly that wires the roles: in one process, or each in its own.

pub mod cli;
pub mod client;
mod clock;
pub mod command;
pub mod config;
mod demo;
pub mod failure;
mod measure;
mod nofile;
mod output;
pub mod platform;
pub mod project;
mod report;
mod roles;
mod signal;
