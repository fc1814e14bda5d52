//! How many files the process may have open: each connection, segment of the log and file that is read is one.

/// Beyond this more is of no use, and a child process that closes all it could have inherited takes long.
const ENOUGH: libc::rlim_t = 1 << 20;

/// Raises the limit as far as that goes without privileges, and says what it is then.
#[expect(unsafe_code, reason = "the standard library doesn't have these two calls")]
pub fn raise() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call fills the structure that it is given.
    let is_known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0;
    let raised = libc::rlimit { rlim_cur: limit.rlim_max.min(ENOUGH), ..limit };
    if is_known && raised.rlim_cur > limit.rlim_cur {
        // SAFETY: the call reads the structure that it is given.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } == 0 {
            limit = raised;
        } else {
            let error = std::io::Error::last_os_error();
            tracing::warn!(%error, "the limit of open files can't be raised");
        }
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}
