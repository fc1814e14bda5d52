mod edition;
pub(crate) mod kit;
mod late;
mod limit;
mod log;
mod output;
mod pipeline;
mod property;
mod trap;
