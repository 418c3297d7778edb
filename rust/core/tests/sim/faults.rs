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
    CancelInRoom = "cancel while the prompt is elsewhere",
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
    // What workers say to each other.
    LostLetter = "message lost",
    RepeatedLetter = "message repeated, late",
    LateLetter = "message late, overtaken by others",
    LostBeat = "beat lost",
    LetterToGone = "message to a process that is gone",
    Partition = "message lost in a partition",
    LostSubmit = "prefill half of a job lost by the router",
    LateSubmit = "prefill half of a job late",
    LocalPrefill = "no prefill worker: computed where it is decoded",
    RoomFailed = "room failed, attempt repeated",
    Deadline = "attempt given up by the router",
    // What they write into each other's memory.
    SlowPeer = "transfer 200 times slower",
    LateLanding = "part of a transfer lands late",
    LandsAfterDeath = "lands after its writer died",
    LandsAfterError = "lands after its error was told",
    LandsAfterEnd = "lands after its room was given up",
    TornWrite = "torn transfer",
    TransferError = "transfer fails",
    Fence = "living peer cut off, and back later",
    FencedWrite = "transfer cut by a fence",
    BitFlip = "bit flipped on the way",
    DigestCaught = "digest does not match, found",
    RepeatedTicket = "end of a transfer reported twice",
    RepeatedCheck = "inspection reported twice",
    StrayEvent = "event about an unknown room or ticket",
    WeakEvidence = "peer said to be gone, without proof",
    PeerGone = "peer proved gone",
    Stopped = "process stopped for a while",
    Skew = "clocks run at different speeds",
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
