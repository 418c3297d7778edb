//! What may go wrong, and how often it really did.

/// Names the kinds of faults once.
macro_rules! faults {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// A kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    CancelBootstrapping = "cancel while a room has no place yet",
    CancelReady = "cancel while a room has told its place",
    CancelTransferring = "cancel while a prompt lands",
    CancelInspecting = "cancel while a prompt is looked at",
    CancelSeated = "cancel while a prompt waits for a row",
    WithdrawnHalf = "prefill half taken back by the router",
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
    DiesAtWork = "worker dies while it is written to, or writes",
    Restart = "restart with a new incarnation",
    DiesBootstrapping = "decode dies, room without a place",
    DiesReady = "decode dies, place told",
    DiesTransferring = "decode dies, prompt landing",
    DiesInspecting = "decode dies, prompt looked at",
    DiesDecoding = "decode dies, prompt arrived",
    DiesInDoubt = "decode dies, blocks quarantined",
    DiesParked = "prefill dies, room in turn",
    DiesWanting = "prefill dies, has asked for a place",
    DiesComputing = "prefill dies, computing and sending",
    DiesSending = "prefill dies, last chunks on their way",
    DiesDraining = "prefill dies, tickets without a request",
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
    RepeatedSubmit = "prefill half submitted twice",
    OtherPrompt = "prefill half with another prompt, refused",
    SameRoom = "next attempt in the same room",
    TakenRoom = "second request for a room, refused",
    ForeignRoom = "room of a router that knows no ranks",
    MisplacedRoom = "room of another rank, refused",
    NoPlace = "decode pool full, prompt waits for a place",
    RoomDeadline = "room given up, deadline of a worker",
    LeaseExpired = "room given up, lease expired",
    FlaggedRow = "not finite, by the aux row alone",
    WildFirstToken = "first token outside the vocabulary",
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
    LateCheck = "inspection reported late",
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
