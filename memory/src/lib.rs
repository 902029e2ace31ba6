//! Makes the allocator of glibc give memory back.
//!
//! glibc raises its threshold for `mmap` with each large block that is freed, up to 32 MiB, and keeps
//! later blocks of that size in arenas that never shrink (mallopt(3), "Dynamic adjustment of the mmap
//! threshold"). A daemon that once handled large outputs would keep their memory. There is no safe
//! interface to these settings, so that they are in a package of their own: the program itself forbids
//! unsafe code. With other allocators both functions do nothing.

/// Blocks from this size on, in bytes, are mapped on their own and given back when they are freed.
/// It is the initial value of glibc; setting it stops the adjustment.
pub const MAPPED_BYTES: i32 = 128 * 1024;

/// Fixes the thresholds of the allocator, and limits it to one arena: the program has one thread that
/// allocates much. Call it before there are other threads.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn limit_retention() {
    for (parameter, value) in [
        (libc::M_MMAP_THRESHOLD, MAPPED_BYTES),
        (libc::M_TRIM_THRESHOLD, MAPPED_BYTES),
        (libc::M_ARENA_MAX, 1),
    ] {
        // SAFETY: mallopt takes two integers and has no preconditions. A value that it does not accept
        // changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives the free pages of the allocator back to the system. It takes some milliseconds and blocks
/// allocations meanwhile.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn release() {
    // SAFETY: malloc_trim takes an integer, has no preconditions, and is safe to call from any thread
    // (malloc_trim(3)).
    unsafe { libc::malloc_trim(0) };
}

/// Does nothing: the allocator is not that of glibc.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn limit_retention() {}

/// Does nothing: the allocator is not that of glibc.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn release() {}

#[cfg(test)]
mod tests {
    #[test]
    fn both_can_be_called_at_any_time() {
        super::limit_retention();
        let block = vec![1_u8; 1024 * 1024];
        super::release();
        assert!(block.iter().all(|byte| *byte == 1));
    }
}
