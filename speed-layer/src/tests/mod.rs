pub(crate) mod kit;
mod limit;
mod log;
mod pipeline;
mod property;
