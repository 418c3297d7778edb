//! From any state on: once the network is whole and proofs arrive, everything comes to an end.

use crate::cell::{Bytes, Cell, End, Memory, Parts, Violation};
use crate::moves::{Fault, Move};
use crate::scope::Scope;
use dsv4_core::transfer::message::Reason;
use dsv4_core::transfer::receiving::Phase;
use dsv4_core::transfer::rooms::Rooms;

/// What happens to what was under way when the network healed.
#[derive(Clone, Copy, Debug)]
pub enum Old {
    Lost,
    Arrives,
}

/// Rounds until what has not ended meets its deadline; until a peer that cannot say that it drained
/// is cut off; and until all must be over.
const DEADLINE: usize = 8;
const FENCE: usize = 16;
const OVER: usize = 24;

/// Lets one request come to its end, and says what is left of it where it does not.
pub fn heal(cell: &Cell, old: Old, scope: &Scope, parts: &mut Parts) -> Result<(), String> {
    let mut cell = cell.clone();
    if matches!(old, Old::Lost) {
        cell.wire = 0;
    }
    let go = |result: Result<(), Violation>| result.map_err(|violation| format!("{violation:?}"));
    for round in 0..OVER {
        if !cell.prefill_alive {
            go(cell.suffer(Fault::PrefillComesBack, scope, parts))?;
        }
        for fault in [Fault::ExitIsTold, Fault::ReceiverIsDestroyed, Fault::Reconnect] {
            if let Some(after) = cell.after_fault(fault, scope, parts) {
                cell = after.map_err(|violation| format!("{violation:?}"))?;
            }
        }
        if round == FENCE && owes(&cell) {
            go(cell.suffer(Fault::Fence, scope, parts))?;
            go(cell.suffer(Fault::Reconnect, scope, parts))?;
        }
        go(land_all(&mut cell, scope, parts))?;
        if round < DEADLINE {
            cell = progress(cell, scope, parts)?;
        } else {
            go(deadline(&mut cell, scope, parts))?;
        }
        go(say_again(&mut cell, scope, parts))?;
    }
    let left = leftovers(&cell, scope, parts);
    if left.is_empty() { Ok(()) } else { Err(format!("{left} in {cell:?}")) }
}

fn owes(cell: &Cell) -> bool {
    cell.attempts.iter().any(|attempt| attempt.owes != 0)
}

fn land_all(cell: &mut Cell, scope: &Scope, parts: &mut Parts) -> Result<(), Violation> {
    while let Some(at) = cell.flights.iter().position(|flight| flight.bytes == Bytes::Posted) {
        cell.land(at)?;
    }
    while let Some(at) = cell.flights.iter().position(|flight| flight.bytes == Bytes::Orphaned) {
        cell.land(at)?;
    }
    while let Some(flight) = cell.flights.first() {
        let landed = flight.bytes == Bytes::Landed;
        *cell = cell.after(Move::EndTicket(0, landed), scope, parts)?;
    }
    Ok(())
}

/// One step of everything that a worker does by itself.
fn progress(mut cell: Cell, scope: &Scope, parts: &mut Parts) -> Result<Cell, String> {
    for one in cell.moves(scope, parts) {
        let begun = |epoch: u8| cell.attempts[epoch as usize].between != (0, 0);
        let wanted = match one {
            Move::StartDecode(epoch) | Move::StartPrefill(epoch, _) => begun(epoch),
            Move::Offer(_) | Move::Want(..) | Move::Post(..) | Move::Finish(_) => true,
            Move::Inspect(_, good) => good,
            _ => false,
        };
        if wanted {
            cell = cell.after(one, scope, parts).map_err(|violation| format!("{violation:?}"))?;
        }
    }
    Ok(cell)
}

fn deadline(cell: &mut Cell, scope: &Scope, parts: &mut Parts) -> Result<(), Violation> {
    for epoch in 0..scope.attempts {
        let key = cell.decode_key(epoch);
        cell.on_decode(scope, parts, |rooms| {
            let inspecting = rooms.receiving(key).is_some_and(|it| it.phase() == Phase::Inspecting);
            if inspecting || rooms.receiving(key).is_none() {
                return vec![];
            }
            rooms.abort(key, Reason::Deadline)
        })?;
        let inspect = Move::Inspect(epoch as u8, true);
        let finish = Move::Finish(epoch as u8);
        for one in cell.moves(scope, parts) {
            if one == inspect || one == finish {
                *cell = cell.after(one, scope, parts)?;
            }
        }
        let key = cell.prefill_key(epoch);
        for rank in 0..scope.ranks {
            cell.on_prefill(rank, scope, parts, |rooms| {
                if rooms.sending(key).is_none() {
                    return vec![];
                }
                rooms.abort(key, Reason::Deadline)
            })?;
        }
    }
    Ok(())
}

/// Everything that waits for an answer is said again, and everything that is said arrives.
fn say_again(cell: &mut Cell, scope: &Scope, parts: &mut Parts) -> Result<(), Violation> {
    cell.on_decode(scope, parts, |rooms| rooms.say_again())?;
    for rank in 0..scope.ranks {
        cell.on_prefill(rank, scope, parts, |rooms: &mut Rooms| rooms.say_again())?;
    }
    for _ in 0..1_000 {
        let under_way = cell.wire;
        if under_way == 0 {
            break;
        }
        let number = under_way.trailing_zeros();
        cell.wire &= !(1 << number);
        cell.deliver(number, scope, parts)?;
    }
    assert_eq!(cell.wire, 0, "two workers keep each other talking");
    Ok(())
}

/// What should be over and is not.
fn leftovers(cell: &Cell, scope: &Scope, parts: &Parts) -> String {
    let mut left = vec![];
    if parts.rooms.get(cell.decode).num_live() > 0 {
        left.push("a room of decode".to_owned());
    }
    for rank in 0..scope.ranks {
        if parts.rooms.get(cell.prefill[rank]).num_live() > 0 {
            left.push(format!("a room of prefill rank {rank}"));
        }
    }
    for (epoch, attempt) in cell.attempts.iter().enumerate() {
        if !matches!(attempt.memory, Memory::Untaken | Memory::Freed | Memory::Lost) {
            left.push(format!("blocks of epoch {epoch}"));
        }
        if attempt.decode_started && attempt.decode == End::Not {
            left.push(format!("no terminal event of decode in epoch {epoch}"));
        }
        for rank in 0..scope.ranks {
            if attempt.prefill_started >> rank & 1 == 1 && attempt.prefill[rank] == End::Not {
                left.push(format!("no terminal event of prefill rank {rank} in epoch {epoch}"));
            }
        }
    }
    left.join(", ")
}
