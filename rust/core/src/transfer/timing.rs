//! Time, as durations that were told: nothing here knows what o'clock it is.

/// How long things may take, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// Until what waits for an answer is said again; doubled each time.
    pub first_repeat: u64,
    /// The doubling ends here.
    pub last_repeat: u64,
    /// Between two beats.
    pub beat: u64,
    /// Silence after which a peer is suspect.
    pub suspect: u64,
    /// Silence after which its rooms are given up. What it may write stays quarantined.
    pub lease: u64,
    /// For how long a closed room is remembered: longer than any message can be under way.
    pub tombstone: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            first_repeat: 250,
            last_repeat: 5_000,
            beat: 1_000,
            suspect: 3_000,
            lease: 30_000,
            tombstone: 120_000,
        }
    }
}

/// When to say something again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Repeat {
    wait: u64,
    left: u64,
}

impl Repeat {
    /// Something was just said for the first time.
    pub fn start(timing: &Timing) -> Self {
        Self { wait: timing.first_repeat, left: timing.first_repeat }
    }

    /// Whether it is due after so much more time. However much it was, it is due once.
    pub fn elapse(&mut self, milliseconds: u64, timing: &Timing) -> bool {
        self.left = self.left.saturating_sub(milliseconds);
        let due = self.left == 0;
        if due {
            self.wait = (self.wait * 2).min(timing.last_repeat);
            self.left = self.wait;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeat_comes_after_a_quarter_second_and_then_ever_later_up_to_five() {
        let timing = Timing::default();
        let mut repeat = Repeat::start(&timing);
        let due: Vec<u64> = (1..=25_000).filter(|_| repeat.elapse(1, &timing)).collect();
        assert_eq!(due, [250, 750, 1_750, 3_750, 7_750, 12_750, 17_750, 22_750]);
    }

    #[test]
    fn a_long_pause_is_one_repeat() {
        let timing = Timing::default();
        let mut repeat = Repeat::start(&timing);
        assert!(repeat.elapse(1_000_000, &timing));
        assert!(!repeat.elapse(499, &timing));
        assert!(repeat.elapse(1, &timing));
    }
}
