//! Which prefill rank serves a room: the room's number says it, modulo the number of ranks.
//!
//! Others place by `room % dp_size`, so a number drawn for a rank must leave that remainder, and
//! must not exceed 2^63 - 1 although the draw may be that large.

use crate::planted::{self, Bug};
use crate::transfer::ids::Room;

/// A data-parallel rank, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Placement {
    pub rank: u32,
    pub size: u32,
}

/// Why a placement does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Misplaced {
    #[error("dp_rank is {rank}, but dp_size is {size}; ranks are 0 to dp_size - 1")]
    NoSuchRank { rank: u32, size: u32 },
    #[error("room {room} is more than 2^63 - 1")]
    TooLarge { room: u64 },
    #[error("room {room} is for dp_rank {implied} of {size}, but dp_rank {rank} was asked for")]
    RankMismatch { room: u64, implied: u32, rank: u32, size: u32 },
}

impl Placement {
    /// Refuses ranks that do not exist.
    pub fn new(rank: u32, size: u32) -> Result<Self, Misplaced> {
        if rank < size {
            Ok(Self { rank, size })
        } else {
            Err(Misplaced::NoSuchRank { rank, size })
        }
    }

    /// The room for this rank that `draw` stands for, with `draw` from 0 to 2^63 - 1.
    ///
    /// ```text
    ///   most = floor((2^63 - 1 - rank) / size)
    ///   room = draw mod (most + 1) * size + rank
    /// ```
    pub fn room(self, draw: u64) -> Result<Room, Misplaced> {
        let (rank, size) = (u64::from(self.rank), u64::from(self.size));
        let Room(draw) = unplaced(draw)?;
        let most = (Room::MAX - rank) / size;
        if planted::is(Bug::OldPlacement) {
            return Ok(Room(draw / size * size + rank));
        }
        Ok(Room(draw % (most + 1) * size + rank))
    }

    /// Refuses a room whose number stands for another rank.
    pub fn check(self, room: Room) -> Result<(), Misplaced> {
        let implied = rank_of(room, self.size)?;
        if implied == self.rank {
            return Ok(());
        }
        let Self { rank, size } = self;
        Err(Misplaced::RankMismatch { room: room.0, implied, rank, size })
    }
}

/// The room that a draw is when nobody cares for the rank: itself.
pub fn unplaced(draw: u64) -> Result<Room, Misplaced> {
    if draw > Room::MAX { Err(Misplaced::TooLarge { room: draw }) } else { Ok(Room(draw)) }
}

/// The room for a draw, a rank and a size, where either of the latter may be missing.
pub fn place(draw: u64, rank: Option<u32>, size: Option<u32>) -> Result<Room, Misplaced> {
    match (rank, size) {
        (Some(rank), Some(size)) => Placement::new(rank, size)?.room(draw),
        (_, Some(0)) => Err(Misplaced::NoSuchRank { rank: 0, size: 0 }),
        _ => unplaced(draw),
    }
}

/// The rank that a room's number stands for.
pub fn rank_of(room: Room, size: u32) -> Result<u32, Misplaced> {
    if size == 0 {
        return Err(Misplaced::NoSuchRank { rank: 0, size });
    }
    let Room(room) = unplaced(room.0)?;
    Ok(u32::try_from(room % u64::from(size)).expect("a remainder of a u32"))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Form = fn(u64, u32, u32) -> u128;

    fn ours(draw: u64, rank: u32, size: u32) -> u128 {
        u128::from(Placement::new(rank, size).and_then(|at| at.room(draw)).expect("in range").0)
    }

    /// What dynamo #9080 first fixed it with.
    fn old_form(draw: u64, rank: u32, size: u32) -> u128 {
        let (draw, rank, size) = (u128::from(draw), u128::from(rank), u128::from(size));
        draw / size * size + rank
    }

    fn holds(form: Form, draw: u64, rank: u32, size: u32) -> bool {
        let room = form(draw, rank, size);
        room <= u128::from(Room::MAX) && room % u128::from(size) == u128::from(rank)
    }

    /// (size, rank) at which a form breaks for the largest draw: property (a).
    fn broken_at_the_top(form: Form) -> Vec<(u32, u32)> {
        [3, 5, 6, 7, 9, 16, 32, 48, 49, 64, 128]
            .into_iter()
            .flat_map(|size| (0..size).map(move |rank| (size, rank)))
            .filter(|&(size, rank)| !holds(form, Room::MAX, rank, size))
            .collect()
    }

    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[test]
    fn a_every_rank_is_reached_at_the_largest_draw() {
        assert_eq!(broken_at_the_top(ours), []);
    }

    #[test]
    fn b_residue_and_cap_hold_at_the_edges() {
        let top = Room::MAX;
        for size in [3, 8, 48, 49] {
            for rank in [0, 1, size / 2, size - 1] {
                for draw in
                    [0, 1, 47, 48, 49, 1_000_000, 1 << 32, (1 << 62) - 1, 1 << 62, top - 1, top]
                {
                    assert!(holds(ours, draw, rank, size), "{draw} of rank {rank} of {size}");
                }
            }
        }
    }

    #[test]
    fn c_without_rank_or_size_the_room_is_the_draw() {
        for draw in [0, 1, 47, Room::MAX] {
            for (rank, size) in [(None, None), (Some(3), None), (None, Some(8))] {
                assert_eq!(place(draw, rank, size), Ok(Room(draw)));
            }
        }
    }

    #[test]
    fn d_the_same_draw_is_the_same_room() {
        for draw in [0, 12_345, Room::MAX] {
            assert_eq!(place(draw, Some(7), Some(48)), place(draw, Some(7), Some(48)));
        }
        assert_eq!(place(100, Some(7), Some(48)), Ok(Room(4_807)));
    }

    #[test]
    fn e_draws_spread_over_more_than_half_the_range_of_every_rank() {
        let mut state = 9080;
        for rank in 0..48 {
            let rooms: Vec<u64> = (0..2_000)
                .map(|_| place(random(&mut state) >> 1, Some(rank), Some(48)).expect("in range").0)
                .collect();
            assert!(rooms.iter().all(|room| room % 48 == u64::from(rank)));
            let span = rooms.iter().max().expect("2000") - rooms.iter().min().expect("2000");
            assert!(span > Room::MAX / 2, "rank {rank} spans {span}");
        }
    }

    #[test]
    fn f_the_old_form_fails_at_the_top() {
        let broken = broken_at_the_top(old_form);
        for size in [7, 49] {
            let ranks: Vec<u32> =
                broken.iter().filter(|at| at.0 == size).map(|&(_, rank)| rank).collect();
            assert_eq!(ranks, (1..size).collect::<Vec<_>>(), "size {size}");
        }
        let ranks: Vec<u32> =
            broken.iter().filter(|at| at.0 == 48).map(|&(_, rank)| rank).collect();
        assert_eq!(ranks, (32..48).collect::<Vec<_>>());
    }

    #[test]
    fn g_ranks_that_do_not_exist_are_refused() {
        for (rank, size) in [(3, 3), (4, 3), (0, 0), (u32::MAX, 48)] {
            assert_eq!(Placement::new(rank, size), Err(Misplaced::NoSuchRank { rank, size }));
            assert!(place(1, Some(rank), Some(size)).is_err());
        }
        assert!(place(1, None, Some(0)).is_err());
        assert!(rank_of(Room(1), 0).is_err());
        assert_eq!(place(1 << 63, None, None), Err(Misplaced::TooLarge { room: 1 << 63 }));
        assert!(Placement { rank: 0, size: 1 }.room(1 << 63).is_err());
    }

    #[test]
    fn h_any_draw_rank_and_size() {
        let mut state = 63;
        for _ in 0..200_000 {
            let size = u32::try_from(random(&mut state) % (1 << 20)).expect("20 bits") + 1;
            let rank = u32::try_from(random(&mut state) % u64::from(size)).expect("a rank");
            let draw = random(&mut state) >> 1;
            assert!(holds(ours, draw, rank, size), "{draw} of rank {rank} of {size}");
            let room = place(draw, Some(rank), Some(size)).expect("in range");
            assert_eq!(rank_of(room, size), Ok(rank));
            assert_eq!(Placement { rank, size }.check(room), Ok(()));
        }
    }

    /// dynamo #9080, sgl #22901: a rank lost in a random room.
    #[test]
    fn a_room_of_another_rank_is_refused() {
        let asked = Placement::new(5, 8).expect("a rank");
        let mismatch = Misplaced::RankMismatch { room: 12, implied: 4, rank: 5, size: 8 };
        assert_eq!(asked.check(Room(12)), Err(mismatch));
        assert_eq!(asked.check(Room(13)), Ok(()));
        assert!(asked.check(Room(1 << 63)).is_err());
    }
}
