//! Between the machines of the rooms and what they hold: events in, actions out.

use super::Scheduler;
use super::rooms::{Errands, Posting, Reset, Side, Transfer};
use super::send::{Departing, Sources, Stage};
use super::settle::Event;
use crate::error::Error;
use crate::ids::{Group, RequestId};
use crate::request::{Rank, Request};
use crate::transfer::ids::{RoomKey, Ticket};
use crate::transfer::message::Reason;

impl Scheduler {
    /// Enqueues a request that has another side.
    pub(crate) fn submit_transfer(
        &mut self,
        priority: i32,
        transfer: &Transfer,
        make: impl FnOnce(RequestId, Rank) -> Request,
    ) -> Result<RequestId, Error> {
        let id = RequestId(self.last_id.0 + 1);
        let rank = Rank::new(self.newest, priority, self.limits.aging_steps, id);
        let request = make(id, rank);
        self.last_id = id;
        let key = RoomKey { room: transfer.room, epoch: transfer.epoch, peer: transfer.peer };
        self.rooms.by_key.insert(key, id);
        match transfer.side {
            Side::Prefill => {
                let stage = Stage::Parked(Box::new(request));
                self.rooms.departing.insert(id, Departing { key, stage, num_sent: 0 });
                self.rooms.parked.insert(rank, id);
            }
            Side::Decode => {}
        }
        Ok(id)
    }

    pub(super) fn offer(&mut self, id: RequestId) {}
    pub(super) fn want(&mut self, key: RoomKey) {}
    pub(super) fn send(&mut self, key: RoomKey, ticket: Ticket, sources: Sources, is_last: bool) {}
    pub(super) fn give_up_room(&mut self, id: RequestId, reason: Reason) {}
    pub(super) fn abort_room(&mut self, id: RequestId) -> bool {
        false
    }
    pub(super) fn clear_rooms(&mut self) {}
    pub(super) fn room_event(&mut self, event: &Event<'_>) {}
    pub(super) fn tick_rooms(&mut self) {}
    pub(super) fn move_rooms(&mut self) {
        self.land_waiting();
        self.want_next();
    }
    pub(super) fn check_first(&self, key: RoomKey, token: i32) -> Result<(), Error> {
        Ok(())
    }
}
