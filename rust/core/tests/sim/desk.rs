//! What a worker's transport remembers of rooms, to know where to look and what to send along.

use std::collections::BTreeMap;

use dsv4_core::transfer::ids::{Incarnation, RoomKey};
use dsv4_core::transfer::message::Offer;
use dsv4_core::transfer::proof::{Evidence, Transport};
use dsv4_core::transfer::receiving::{Inspection, Tag};
use dsv4_core::transfer::runs::{Copies, Run};

use crate::cargo::{AuxRow, Share, Spot};
use crate::device::Device;
use crate::model::mix;
use crate::rng::Rng;

/// The desk of one process.
#[derive(Clone, Debug, Default)]
pub struct Desk {
    /// Where each room was told to write, on the side that is written to.
    pub offers: BTreeMap<RoomKey, Offer>,
    /// What was sampled behind each prompt, on the side that computes them.
    pub first_tokens: BTreeMap<RoomKey, i32>,
    /// How often each peer said, since its way in was cut last, that it cannot prove to be done.
    pub num_undrained: BTreeMap<Incarnation, usize>,
}

/// A peer that says so more often is cut off: it may never come to prove it.
pub const PATIENCE: usize = 20;

/// What the aux row of a room carries, so that it can be told from another's.
pub fn tag_of(key: RoomKey, writer: Incarnation) -> u64 {
    let writer = mix(u64::try_from(writer.0).expect("ours are small"), key.room.0);
    mix(writer, u64::from(key.epoch.0)) | 1
}

/// Sources and targets of a ticket by position.
pub fn items_of(copies: &Copies) -> Vec<(Spot, Spot)> {
    let mut items = vec![];
    let mut add = |make: fn(usize) -> Spot, runs: &[Run]| {
        for run in runs {
            for step in 0..run.count {
                let [source, target] =
                    [run.source, run.target].map(|first| (first + step) as usize);
                items.push((make(source), make(target)));
            }
        }
    };
    add(Spot::Full, &copies.full);
    add(Spot::Swa, &copies.swa);
    add(Spot::State, copies.state.as_slice());
    add(Spot::Aux, copies.aux.as_slice());
    items
}

/// Every spot that an offer tells of.
pub fn spots_of(offer: &Offer) -> Vec<Spot> {
    let full = offer.full.iter().map(|target| Spot::Full(target.block as usize));
    let swa = offer.swa.iter().map(|target| Spot::Swa(target.block as usize));
    let state = Spot::State(offer.state.block as usize);
    full.chain(swa).chain([state, Spot::Aux(offer.aux.block as usize)]).collect()
}

/// Over a share of one item: what it holds, and where it is to lie.
pub fn digest(device: &Device, source: Spot, target: Spot, share: Share) -> u64 {
    let place = match target {
        Spot::Full(place) => place * 4,
        Spot::Swa(place) => place * 4 + 1,
        Spot::State(place) => place * 4 + 2,
        Spot::Aux(place) => place * 4 + 3,
    };
    mix(place as u64, device.digest_of(source, share))
}

impl Desk {
    /// What is found where a room was told to write, and the first token.
    pub fn inspect(
        &self,
        key: RoomKey,
        aux: usize,
        device: &Device,
        num_ranks: usize,
    ) -> (i32, Inspection) {
        let AuxRow { tag, first_token, non_finite } = device.aux[aux];
        let offer = self.offers.get(&key).expect("what is inspected was offered");
        let of_rank = |rank| {
            let share = Share { rank, num_ranks };
            let digests = spots_of(offer).into_iter().map(|spot| digest(device, spot, spot, share));
            digests.fold(0, u64::wrapping_add)
        };
        // The row holds a tag mixed from all of it: it is whole, or of nobody.
        let is_mine = tag == tag_of(key, key.peer);
        let writer = if is_mine { key.peer } else { Incarnation(0) };
        let tag = Tag { room: key.room, epoch: key.epoch, writer };
        (
            first_token,
            Inspection { tag, digests: (0..num_ranks).map(of_rank).collect(), non_finite },
        )
    }
}

/// How parts behave on one transport, and what proves that they are over.
#[derive(Clone, Copy, Debug)]
pub struct Way(pub Transport);

impl Way {
    pub fn random(rng: &mut Rng) -> Self {
        use Transport::{InProcess, NixlCma, NixlTcp, SharedMemory, Tcp};
        Self(rng.pick(&[InProcess, Tcp, Tcp, SharedMemory, NixlCma, NixlTcp, NixlTcp, NixlTcp]))
    }

    /// May what left a process land after its death?
    pub fn outlives_writer(self) -> bool {
        !matches!(self.0, Transport::SharedMemory | Transport::NixlCma)
    }

    /// What proves that a dead peer writes no more.
    pub fn proof_of_death(self) -> Evidence {
        match self.0 {
            Transport::InProcess => Evidence::TaskJoined,
            Transport::Tcp => Evidence::ReceiverJoined,
            Transport::SharedMemory | Transport::NixlCma => Evidence::ProcessExit,
            Transport::NixlTcp | Transport::NixlRdma => Evidence::ExitAndAgentDestroyed,
        }
    }

    /// What is known earlier and proves nothing.
    pub fn hint_of_death(self) -> Option<Evidence> {
        (self.0 == Transport::NixlTcp || self.0 == Transport::Tcp).then_some(Evidence::ProcessExit)
    }

    /// What proves that a living peer was cut off; None where that cannot be done.
    pub fn proof_of_fence(self) -> Option<Evidence> {
        match self.0 {
            Transport::InProcess => Some(Evidence::TaskJoined),
            Transport::Tcp => Some(Evidence::ReceiverJoined),
            Transport::NixlTcp => Some(Evidence::AgentDestroyed),
            _ => None,
        }
    }
}
