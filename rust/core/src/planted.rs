//! Bugs of other engines, and some that this design could have, planted one at
//! a time: the tests must find each (`make test-planted`).
//!
//! A site reads `if planted::is(Bug::DropFrees) { .. }`. Without the feature `planted`, which
//! nothing that ships turns on, that is `false` at compile time and nothing is left of it. With it,
//! the environment variable `DSV4_PLANTED` names the one bug that is there, by its number here.
//!
//! Each variant says where the bug happened and what is planted for it; `docs/planted_bugs.md` says
//! which test finds it, and after how long. Both are read by `scripts/planted.py`.

/// One bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// sgl#25805, sgl#27586 | a handle of an earlier life gives up the block that another has now
    StaleHandle,
    /// sgl#25901, sgl#27779 | what is given up is listed twice, and freed twice
    DoubleFree,
    /// trt#14565, sgl#24527 | what is given up is free at once, although a step in flight reads it
    DropFrees,
    /// sgl#25889 | what is given up is free one step early
    ReclaimEarly,
    /// sgl#38519 | a table names the block before its own, and so the poison block
    NeighbourBlock,
    /// sgl#36637 | a reader that leaves takes the block from those who still read it
    ReaderTakesAll,
    /// Dynamo's KVBM | quarantined blocks go back while handles of them are left
    RepairInUse,
    /// sgl#11970 | an aborted or finished request keeps its blocks
    EndLeaks,
    /// lmdeploy#1788 | a request that ends gives its blocks back, and not what it was promised
    PromiseLeaks,
    /// vllm#37076 | a request takes free blocks that were promised to another
    PromiseBroken,
    /// sgl#36135 | a promise is drawn on while blocks that stand for it still wait to be reclaimed
    UnsettledPromise,
    /// sgl#27779 | a window that slid into a block gives that block up
    SlideEarly,
    /// InferenceX#2111 | a prompt keeps its whole window until it decodes
    SlideLate,
    /// vllm#51041 | the window blocks of a step's chunks are set aside once per request
    TransientPerRequest,
    /// sgl#36458 | requests are admitted without a look at the windows of those that run
    WindowOverbooked,
    /// sgl#29662, sgl#30532 | blocks of the full group are evicted, those of the others never
    EvictsOneGroup,
    /// sgl#25068 | a block is evicted while longer prefixes hang on it
    EvictsInnerNode,
    /// trt#12542 | a block is evicted while a request reads it
    EvictsUsed,
    /// vllm#37076 | what a request is about to start from is evicted to make room for it
    EvictsOwnHit,
    /// vllm#42948 | the block used last is evicted first
    EvictsNewest,
    /// sgl#34565 | the checkpoint where prefixes part is evicted like any other that was passed
    EvictsFork,
    /// local-inference-lab/vllm#480 | the key of an evicted block is still found
    PhantomHit,
    /// CVE-2026-10813 | keys have 8 bits, and nothing is compared on a hit
    ShortKey,
    /// arXiv 2502.07776 | the salt is no part of a key, and is not compared
    SaltIgnored,
    /// sgl#22819 | a hit may cover the whole prompt, at its last boundary
    HitCoversAll,
    /// vllm#52216 | a hit ends one block before it could
    HitOneShort,
    /// vllm#53912 | a hit starts with the state that its slot had
    RestoreSkipped,
    /// sgl#33656 | a checkpoint keeps a window that is one block short
    CheckpointShort,
    /// vllm#50283, sgl#33187 | what was not finite is cached
    NonFiniteCached,
    /// vllm#50702 | blocks are cached before the step that writes them is done
    PublishedEarly,
    /// Dynamo's KVBM | what was computed twice is kept twice
    DuplicateKept,
    /// sgl#26907 | a generation leaves a checkpoint at each boundary that it passes
    RollingKept,
    /// sgl#23392 | a request that ends leaves its place in the cache in use
    UserLeaks,
    /// vllm#51318 | a row of a table keeps what an earlier step left behind its end
    RowNotCleared,
    /// sgl#32470 | a compressed group that began in an earlier chunk is not closed
    GroupNotClosed,
    /// vllm#51970 | a plan counts one group more than the arrays hold
    Underfilled,
    /// sgl#26987 | a group's row is that of its first token in the block
    GroupMisplaced,
    /// design | a slot that is used again is not reset
    SlotNotReset,
    /// sgl#25889 | a window's first block is told as it was before
    StaleFirst,
    /// sgl#27228 | a chunk that is not the last counts as a sample
    SampleTooMany,
    /// vllm#51318 | the slots of a run go on past the end of its block
    RunPastBlock,
    /// sgl#27221 | waiting does not make a request more urgent
    AgingOff,
    /// sgl#36458 | small requests overtake a large one for ever
    OvertakenForever,
    /// sgl#33385 | the request that came first is preempted
    PreemptsFirst,
    /// sgl#36475 | a preempted request loses the token that was on its way
    TokenLost,
    /// sgl#28520 | a preempted request starts again while its sample is on its way
    RestartsBusy,
    /// sgl#37852 | tokens that left the queue still count
    QueueTokensLeak,
    /// sgl#11970 | one broken block fails all requests of its step
    FailsAll,
    /// sgl#36333 | an abort of one that waits is answered, and it stays
    AbortIgnored,
    /// trt#12313 | an end frees nothing until the next step is done
    AbortWaits,
    /// vllm#21570 | a block is sealed one token before it is full
    SealedEarly,
    /// sgl#22607 | the first of several events is applied before the others are checked
    HalfApplied,
    /// sgl#33206 | the token of logits that were not finite is taken for one
    NonFiniteTaken,
    /// design | rows of rejected drafts are sealed
    RejectedSealed,
    /// design | a block is cached with the row of a token that no step has computed
    UncomputedPublished,
    /// vllm#53912 | the state behind a rejected draft is kept as a checkpoint
    RejectedSaved,
    /// design | an accepted run goes on behind the token that ends the request
    StopOverrun,
    /// design | all drafts count, however many were accepted
    AllAccepted,
    /// design | the drafts of an earlier step stay behind the new ones
    DraftsKept,
    /// design | more drafts are brought than there is output left for
    DraftsPastEnd,
    /// design | drafts are brought that no block covers
    DraftsUncovered,
    /// design | the window slides as if all drafts were accepted
    DraftsSlide,
    /// design | accepted drafts leave the state in the bank of the first token
    BankKept,
    /// design | tokens before the last write the bank of the last
    BankOverwritten,
    /// design | a forwarded token is read from the sample of another request
    WrongSample,
    /// design | a forwarded token is taken for the token 0
    SourceUntold,
    /// design | the token that ends a request is forwarded once more
    ForwardedPastEnd,
    /// design | a row whose request has ended settles whoever has its place now
    EndedSettled,
    /// sgl#23919 | a seed has one stream's width
    SeedByHidden,
    /// sgl#24527, sgl#35049 | what is coming in is free as soon as its request gives it up
    IncomingFreed,
    /// design | blocks are the request's own while a writer is left
    SettledEarly,
    /// sgl#38961 | the first writer that is done frees the blocks of all
    FirstWriterFrees,
    /// vllm#52234 | the proof of another attempt is accepted
    StaleProof,
    /// trt#12542, trt#14565 | what a transfer reads is free when the steps are done
    ReadForgotten,
    /// design | a writer owes nothing before it is heard of
    OwesOnArrival,
    /// design | any answer to an abort is a proof
    AckProves,
    /// design | any refusal is a proof
    RefusalProves,
    /// design | the first chunk that landed is a proof
    ChunkProves,
    /// vllm#21570, aibrix#1772 | an abort that was not answered in time is a proof
    TimeProves,
    /// vllm#21570 | a lease that expires is a proof
    LeaseFrees,
    /// sgl#38961 | one rank's answer discharges all ranks
    OneAckForAll,
    /// design | a process that died is a proof on every transport
    AnythingProves,
    /// design | a prompt is whole when one of its ranks says so
    OneRankEnough,
    /// vllm#48633 | what was reported is not compared with what was planned
    ItemsUnchecked,
    /// vllm#52234 | the tag of an aux row is not looked at
    TagUnchecked,
    /// sgl#33187 | the flag of an aux row is not looked at
    FlagUnchecked,
    /// sgl#23020 | the digest of what landed is not compared
    DigestUnchecked,
    /// design | a first token that is none is believed
    FirstTokenUnchecked,
    /// mori#655 | what waits for an answer is said once
    SaidOnce,
    /// vllm#48633 | a chunk is posted although the room was given up
    PostsAfterAbort,
    /// design | a transfer that failed counts as drained
    FailedDrained,
    /// design | drained is said while a transfer is under way
    DrainedEarly,
    /// sgl#38961 | the source is released before its transfer has ended
    SourceReleased,
    /// design | all has landed, it is said, as soon as all is posted
    FinalEarly,
    /// sgl#30233 | an abort of the prefill side is not told
    AbortUntold,
    /// design | a second list of addresses takes the place of the first
    SecondOfferTaken,
    /// design | a word from someone else counts as the peer's
    StrangerHeard,
    /// vllm#48633, nixl#1219 | lists of different lengths are cut to the shorter
    ListsCut,
    /// design | as many bytes are on their way as there are
    BytesUnbounded,
    /// design | a room begins with a peer that is known to be dead
    DeadPeerTaken,
    /// tokenspeed#1427 | a room that is over begins again
    RoomUsedTwice,
    /// tokenspeed#1427, smg#2463 | a late message finds no trace of a room that is over
    NoTombstone,
    /// design | who is told that a room is unknown is not noted
    AnswerWithoutNote,
    /// design | a room that may still be landing is forgotten like any other
    DoubtForgotten,
    /// sgl#38961 | an abort of a room that is over is not answered
    AbortUnanswered,
    /// design | a message of an earlier attempt reaches this one
    EpochIgnored,
    /// design | addresses from before the way in was cut are taken behind it
    OldOfferTaken,
    /// vllm#53244, vllm#53095 | a heartbeat renews nothing
    BeatRenewsNothing,
    /// dyn#9080, sgl#22901 | the largest rooms are placed on another rank
    OldPlacement,
    /// design | the tail is one block short where a prompt ends with a block
    TailShort,
    /// design | the slot that a prompt's state comes to is not reset
    StateNotReset,
    /// design | the slot is reset when the state has landed
    ResetLate,
    /// vllm#52234 | an aux row keeps the tag of its last room
    TagNotZeroed,
    /// design | the full blocks that a ticket took leave again with the next
    SentTwice,
    /// vllm#48633 | what the other side has cached is sent to where the rest belongs
    HitSent,
    /// design | the window slides past what is still to be sent
    SentWindowSlid,
    /// sgl#33187 | what is computed behind logits that are not finite is sent
    NonFiniteSent,
    /// design | offers go out however much waits for proofs
    OffersUnbounded,
    /// sgl#36458, dyn#13855 | a landing takes what those that run need to finish
    LandsOnLives,
    /// design | a landing that fails leaves its place in the cache in use
    LandingLeaks,
    /// vllm#52234 | a prompt that did not come ends its request, whatever was asked
    NeverRecomputed,
    /// design | a prompt that does not fit waits while all others start
    ArrivalsStarve,
    /// vllm#41269, sgl#29123 | who waits for its other side waits for ever
    DeadlineIgnored,
    /// dyn#7489 | tickets that were not posted are forgotten with their room
    UnpostedForgotten,
    /// dyn#13855 | places that were asked for and given still count as asked for
    TurnLeaks,
}

/// Is this bug there?
#[cfg(not(feature = "planted"))]
pub(crate) const fn is(_bug: Bug) -> bool {
    false
}

/// Is this bug there?
#[cfg(feature = "planted")]
#[expect(clippy::disallowed_methods, reason = "a test's switch; nothing that ships has it")]
pub(crate) fn is(bug: Bug) -> bool {
    static PLANTED: std::sync::OnceLock<Option<usize>> = std::sync::OnceLock::new();
    let planted = PLANTED.get_or_init(|| std::env::var("DSV4_PLANTED").ok()?.parse().ok());
    *planted == Some(bug as usize)
}
