//! The memory that a process's pipelines share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many bytes the pipelines of a process may take together: four fifths of them for state and for updates on their way to
/// the processes that serve, the rest for records on their way and the process itself.
#[derive(Debug, Clone)]
pub struct Memory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: usize,
    used: AtomicUsize,
}

impl Memory {
    /// So many bytes at most.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Shared { limit: limit - limit / 5, used: AtomicUsize::new(0) }))
    }

    /// What a pipeline or a publisher takes of it: nothing yet.
    pub(crate) fn share(&self) -> Share {
        Share { memory: self.clone(), used: 0 }
    }
}

/// What one pipeline or publisher takes.
#[derive(Debug)]
pub(crate) struct Share {
    memory: Memory,
    used: usize,
}

impl Share {
    /// From now on it takes so much. Whether all together are within the limit then.
    pub fn take(&mut self, bytes: usize) -> bool {
        let Shared { limit, used } = &*self.memory.0;
        let others = used.fetch_sub(self.used, Ordering::Relaxed) - self.used;
        self.used = bytes;
        used.fetch_add(bytes, Ordering::Relaxed);
        others + bytes <= *limit
    }

    /// How much it takes.
    pub fn used(&self) -> usize {
        self.used
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.0.used.fetch_sub(self.used, Ordering::Relaxed);
    }
}
