//! Distributions of measured times.

use std::time::Duration;

/// Bound on the samples of a kind. Further ones are counted and dropped.
const MAX_TIMES: usize = 4_000_000;

/// The samples of one kind.
#[derive(Debug, Default)]
pub struct Spread {
    micros: Vec<u32>,
    left_out: u64,
}

impl Spread {
    pub fn add(&mut self, time: Duration) {
        if self.micros.len() < MAX_TIMES {
            self.micros.push(u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
        } else {
            self.left_out += 1;
        }
    }

    pub fn merge(&mut self, other: Self) {
        let room = MAX_TIMES - self.micros.len();
        let (taken, rest) = other.micros.split_at(room.min(other.micros.len()));
        self.micros.extend_from_slice(taken);
        self.left_out += other.left_out + rest.len() as u64;
    }

    pub fn count(&self) -> usize {
        self.micros.len()
    }

    /// Quantiles in milliseconds, for ranks per thousand.
    pub fn millis_at<const N: usize>(&mut self, per_mille: [usize; N]) -> Option<[f64; N]> {
        self.micros.sort_unstable();
        let last = self.micros.len().checked_sub(1)?;
        Some(per_mille.map(|share| f64::from(self.micros[last * share / 1_000]) / 1_000.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_all_times_do_not_exceed_their_mark() {
        let mut spread = Spread::default();
        assert_eq!(spread.millis_at([500]), None);
        for millis in (1..=101).rev() {
            spread.add(Duration::from_millis(millis));
        }
        assert_eq!(spread.millis_at([0, 500, 990, 1_000]), Some([1.0, 51.0, 100.0, 101.0]));
    }
}
