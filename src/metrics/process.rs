//! Process metrics, read from /proc; absent on other systems.

use std::{fs, time::Duration};

/// Linux reports CPU time in hundredths of a second, whatever its timer frequency.
const TICKS_PER_SECOND: u64 = 100;

/// The present usage.
pub struct Figures {
    pub resident_bytes: u64,
    pub open_fds: u64,
    pub max_fds: Option<u64>,
    pub cpu: Duration,
}

pub fn figures() -> Option<Figures> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let resident_kib: u64 = number_after(&status, "VmRSS:")?;
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    Some(Figures {
        resident_bytes: resident_kib * 1024,
        // Reading the folder opens one descriptor.
        open_fds: (fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1),
        max_fds: number_after(&limits, "Max open files"),
        cpu: cpu_in(&stat)?,
    })
}

/// The most files that this process may have open; `u64::MAX` if there is no limit. None where that is not known.
pub fn open_files() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let is_unlimited =
        limits.lines().any(|line| line.starts_with("Max open files            unlimited"));
    if is_unlimited { Some(u64::MAX) } else { number_after(&limits, "Max open files") }
}

/// The number after this prefix of a line; None also for `unlimited`.
fn number_after(text: &str, beginning: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(beginning))?;
    line.split_whitespace().next()?.parse().ok()
}

/// User and system time. The name, in parentheses, may have spaces.
fn cpu_in(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis((ticks()? + ticks()?) * 1_000 / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_writes() {
        let stat = "7 (a) name) S 1 7 7 0 -1 4194304 90 0 0 0 250 50 0 0 20 0 9 0 100 1 2";
        assert_eq!(cpu_in(stat), Some(Duration::from_secs(3)));
        assert_eq!(number_after("VmPeak: 1 kB\nVmRSS:\t  120 kB\n", "VmRSS:"), Some(120));
        assert_eq!(number_after("Max open files  unlimited  unlimited", "Max open files"), None);
        let own = figures().unwrap();
        assert!(own.resident_bytes > 1_000_000 && own.open_fds > 2);
    }
}
