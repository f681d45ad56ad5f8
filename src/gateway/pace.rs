//! Spreads work over a period of time.

use std::time::Duration;

use tokio::time::Instant;

/// Calls `each` for every item in order, spread evenly over `window`. The pace follows elapsed
/// time: if the clock is coarse or an item takes long, several items are processed at once.
pub async fn spread<T>(all: Vec<T>, window: Duration, mut each: impl FnMut(T)) {
    let began = Instant::now();
    let count = u32::try_from(all.len()).unwrap_or(u32::MAX).max(1);
    for (number, one) in (0_u32..).zip(all) {
        let at = began + window.mul_f64(f64::from(number) / f64::from(count));
        if at > Instant::now() {
            tokio::time::sleep_until(at).await;
        }
        each(one);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The timer counts whole milliseconds, and 20,000 connections have less than one each.
    #[tokio::test(start_paused = true)]
    async fn however_many_there_are_the_window_is_kept_and_used() {
        let window = Duration::from_secs(5);
        for count in [0_u32, 1, 3, 1_000, 20_000] {
            let began = Instant::now();
            let mut done_at = Vec::new();
            spread((0..count).collect(), window, |one| done_at.push((one, began.elapsed()))).await;
            assert!(done_at.iter().map(|(one, _)| *one).eq(0..count));
            assert!(began.elapsed() <= window, "{count} take {:?}", began.elapsed());
            for (number, at) in done_at {
                let due = window * number / count;
                let off = at.abs_diff(due);
                assert!(off < Duration::from_millis(3), "{number} of {count} is {off:?} off");
            }
        }
    }
}
