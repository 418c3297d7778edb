//! What ends a writer's hold on memory: positive proofs, and nothing else.
//!
//! No time-out is here, no missed beat, no expired lease, no failed send: whoever is silent may
//! still write. Nor is the death of a process, on a transport whose buffers outlive it.

use crate::planted::{self, Bug};

/// Why a remote rank can write no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proof {
    /// It said so after all its transfers had landed.
    Done,
    /// It said so after an abort: what it had posted landed, and it will never post again.
    AbortAckDrained,
    /// It does not know the room, and has made a note never to learn of it.
    RefusedNeverStarted,
    /// Its process is gone, and with it all that could still arrive.
    WriterGone(Evidence),
    /// This worker cut the way in, while the peer may live.
    LocalFence(Evidence),
}

/// What was observed. Whether it proves anything depends on the [`Transport`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Evidence {
    /// The task that copies was joined; it lived in this process.
    TaskJoined,
    /// The connection was closed, and the task that received on it was joined.
    ReceiverJoined,
    /// The operating system reports the exit of the peer's process.
    ProcessExit,
    /// The agent that received from this peer, and from no other, was destroyed.
    AgentDestroyed,
    /// Both: the process exited, and the agent was destroyed.
    ExitAndAgentDestroyed,
}

impl Evidence {
    /// Whether no process of that incarnation will ever speak again.
    pub fn ends_process(self) -> bool {
        matches!(self, Self::TaskJoined | Self::ProcessExit | Self::ExitAndAgentDestroyed)
    }
}

/// How bytes reach this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// Both workers are in one process.
    InProcess,
    /// Frames that the receiver checks one by one, over a socket.
    Tcp,
    /// Memory that both processes map.
    SharedMemory,
    /// NIXL, copying between processes of one host.
    NixlCma,
    /// NIXL over TCP: the kernel's buffers outlive the writer.
    NixlTcp,
    /// NIXL over RDMA: not tested on hardware, so nothing counts.
    NixlRdma,
}

impl Transport {
    /// Whether the evidence shows that the writer is gone and nothing of its will arrive.
    pub fn proves_writer_gone(self, evidence: Evidence) -> bool {
        use Evidence::{ExitAndAgentDestroyed, ProcessExit, ReceiverJoined, TaskJoined};
        if planted::is(Bug::AnythingProves) {
            return true;
        }
        match self {
            Self::InProcess => evidence == TaskJoined,
            Self::Tcp => evidence == ReceiverJoined,
            Self::SharedMemory | Self::NixlCma => {
                matches!(evidence, ProcessExit | ExitAndAgentDestroyed)
            }
            Self::NixlTcp => evidence == ExitAndAgentDestroyed,
            Self::NixlRdma => false,
        }
    }

    /// Whether the evidence shows that nothing can arrive any more although the writer may live.
    pub fn proves_fence(self, evidence: Evidence) -> bool {
        use Evidence::{AgentDestroyed, ExitAndAgentDestroyed, ReceiverJoined, TaskJoined};
        match self {
            Self::InProcess => evidence == TaskJoined,
            Self::Tcp => evidence == ReceiverJoined,
            Self::NixlTcp => matches!(evidence, AgentDestroyed | ExitAndAgentDestroyed),
            Self::SharedMemory | Self::NixlCma | Self::NixlRdma => false,
        }
    }
}
