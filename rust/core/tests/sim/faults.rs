//! What may go wrong, and how often it really did.

/// Names the kinds of faults once.
macro_rules! faults {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// A kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault { $($(#[$doc])* $kind,)* }

        impl Fault {
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            pub fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }
        }
    };
}

faults! {
    // Clients.
    CancelQueued = "cancel while queued",
    CancelPrefilling = "cancel while prefilling",
    CancelDecoding = "cancel while decoding",
    CancelUnknown = "cancel of an unknown or ended id",
    CancelStorm = "cancel storm",
    Disconnect = "client disconnects",
    SlowClient = "slow client, queue overrun",
    StopString = "stop string found late",
    QueueOverflow = "queue overflow refused",
    TooLong = "impossible length refused",
    // The device.
    NanRow = "NaN in a row",
    NanLogits = "NaN in logits alone",
    StalledStep = "stalled step",
    FailedStep = "failed step, torn writes",
    EarlyWrites = "writes before the step before is over",
    LateReport = "two completions reported at once",
    ReversedRows = "rows of a step run in reverse",
    // The worker and its caller.
    Crash = "worker crashes",
    Restart = "restart with a new incarnation",
    Shutdown = "shutdown under load",
    ClockBack = "clock goes back",
    ClockJump = "clock jumps ahead",
    WrongStep = "completion of a wrong step",
    RepeatedStep = "completion repeated",
    WrongCount = "completion with a wrong count",
    WildToken = "completion with a token outside the vocabulary",
    GreedyPlan = "plan with too many in flight",
    ShortMemory = "plan into too little memory",
    StaleMemory = "plan into memory full of garbage",
}

/// How often each kind really fired.
#[derive(Clone, Debug)]
pub struct Exposure([u64; Fault::ALL.len()]);

impl Default for Exposure {
    fn default() -> Self {
        Self([0; Fault::ALL.len()])
    }
}

impl Exposure {
    pub fn add(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    pub fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    pub fn absorb(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, theirs)| *mine += theirs);
    }
}
