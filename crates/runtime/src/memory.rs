//! What a process holds in memory while it has nothing to do.
//!
//! Most of a component's resident set is code and tables that only its start needs, and what malloc keeps of it. Both are
//! given back: dozens of processes of a node live beside guests that pay for memory.
#![expect(
    unsafe_code,
    reason = "malloc_trim and madvise of one's own program have no safe wrapper"
)]

use std::time::Duration;

/// By then a start is over, at last.
const STARTED: [Duration; 2] = [Duration::from_secs(15), Duration::from_secs(45)];
const BETWEEN: Duration = Duration::from_secs(600);
/// CPU time since the last time after which there is something to give back.
const WORKED: Duration = Duration::from_millis(200);

/// Gives memory back after the start, and every ten minutes in which something was done. Never ends.
pub async fn keep_small() {
    for begun in STARTED {
        tokio::time::sleep(begun).await;
        give_back();
    }
    loop {
        let before = cpu_time();
        tokio::time::sleep(BETWEEN).await;
        while cpu_time().saturating_sub(before) < WORKED {
            tokio::time::sleep(BETWEEN).await;
        }
        give_back();
    }
}

/// Gives back what malloc holds unused, and forgets the program's pages: those still needed come back from the page
/// cache when they are touched.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and locks malloc's arenas itself.
    unsafe {
        libc::malloc_trim(0);
    }
    // Without /proc nothing is given back.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, end) in maps.lines().filter_map(program) {
        // SAFETY: these are file mappings that were never writable, so each page is the file's, and reading or executing
        // it brings it back. Errors change nothing.
        unsafe {
            libc::madvise(
                std::ptr::with_exposed_provenance_mut(start),
                end - start,
                libc::MADV_DONTNEED,
            );
        }
    }
}

/// The range of a line of /proc/PID/maps (proc_pid_maps(5)) that maps code, or the head of an ELF file: headers, symbols,
/// relocations and constants. Not what became read-only after relocation: that is no longer as in the file.
fn program(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, permissions, offset) = (words.next()?, words.next()?, words.next()?);
    let path = words.nth(2)?;
    let head = permissions == "r--p" && offset.bytes().all(|b| b == b'0');
    if !path.starts_with('/') || !(permissions == "r-xp" || head) {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let (start, end) = (
        usize::from_str_radix(start, 16).ok()?,
        usize::from_str_radix(end, 16).ok()?,
    );
    (start < end).then_some((start, end))
}

fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes one timespec, which outlives the call.
    let known = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) } == 0;
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or_default();
    if known {
        Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds)
    } else {
        Duration::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_never_written_is_forgotten() {
        let table = [
            (
                "1000-3000 r--p 00000000 fe:00 42   /usr/bin/ferrovirt",
                Some((0x1000, 0x3000)),
            ),
            (
                "3000-4000 r-xp 00002000 fe:00 42   /usr/bin/ferrovirt",
                Some((0x3000, 0x4000)),
            ),
            // Relocated, then made read-only.
            ("4000-5000 r--p 00003000 fe:00 42   /usr/bin/ferrovirt", None),
            ("5000-6000 rw-p 00004000 fe:00 42   /usr/bin/ferrovirt", None),
            ("6000-7000 rw-p 00000000 00:00 0    [heap]", None),
            ("7000-8000 r-xp 00000000 00:00 0    [vdso]", None),
            ("8000-9000 r--p 00000000 00:00 0", None),
            ("9000-a000 r-xs 00000000 fe:00 43   /shared", None),
            ("nonsense", None),
        ];
        for (line, expected) in table {
            assert_eq!(program(line), expected, "{line}");
        }
    }

    #[test]
    fn a_process_that_gave_memory_back_goes_on() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").expect("/proc is there");
            let line = status
                .lines()
                .find(|line| line.starts_with("RssFile"))
                .map(str::to_owned);
            let words = line.expect("every process has RssFile");
            words.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok())
        };
        let before = resident();
        give_back();
        let after = resident();
        assert!(after < before, "file pages: {before:?} KiB before, {after:?} KiB after");
    }
}
