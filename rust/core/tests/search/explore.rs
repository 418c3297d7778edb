//! Breadth first through every state of a scope.
//!
//! A state is a multiset of cells, one for each request: requests are alike, and so are the blocks
//! that they do not hold, so neither has a name. Every cell has a number, and the sorted numbers are
//! the state, in 128 bits, exactly. What can happen to a cell is worked out once, by the real
//! machines, and looked up after that.

use crate::cell::{Cell, Parts, Violation};
use crate::intern::{Interner, Map};
use crate::moves::{FAULTS, Fault, Move};
use crate::scope::Scope;
use crate::visited::Visited;

/// What a search came to.
#[derive(Debug)]
pub struct Found {
    pub states: usize,
    pub transitions: u64,
    /// Steps from the start to the state that is furthest from it.
    pub depth: usize,
    /// Different cells, and different tables of rooms and messages within.
    pub cells: usize,
    pub rooms: usize,
    pub messages: usize,
    /// Whether there was nothing left to visit.
    pub closed: bool,
    /// The first that was found, and after how many steps.
    pub violation: Option<(Violation, usize)>,
    /// What led there.
    pub trace: Vec<String>,
}

#[derive(Clone, Copy)]
enum Next {
    Cell(u32),
    Broken(Violation),
}

struct Edge {
    next: Next,
    /// It takes blocks.
    takes: bool,
    one: Move,
}

/// All that can happen to one cell.
struct Expanded {
    edges: Vec<Edge>,
    faults: [Option<Next>; FAULTS.len()],
    /// The same, after somebody else took blocks.
    reissued: u32,
    held: usize,
}

pub struct Explorer {
    pub scope: Scope,
    pub parts: Parts,
    pub cells: Interner<Cell>,
    expanded: Vec<Option<Expanded>>,
    visited: Visited,
    transitions: u64,
    /// Where each state was first come from: only for small scopes.
    parents: Option<Map<u128, (u128, String)>>,
}

type Ids = [u32; 6];

enum Stop {
    Broken(Violation, u128, String),
    Full,
}

impl Explorer {
    /// At most `most_places` places of 16 bytes. With `trace`, remembers how each state was reached.
    pub fn new(scope: Scope, most_places: usize, trace: bool) -> Self {
        let parts = Parts { rooms: Interner::new(), envelopes: Interner::new() };
        Self {
            scope,
            parts,
            cells: Interner::new(),
            expanded: vec![],
            visited: Visited::new(1 << 16, most_places),
            transitions: 0,
            parents: trace.then(Map::default),
        }
    }

    pub fn run(&mut self) -> Found {
        let start = Cell::start(&self.scope, &mut self.parts);
        let first = self.cells.number(start);
        let mut ids = [0; 6];
        ids[..self.scope.requests].fill(first);
        let mut frontier = vec![self.pack(ids)];
        self.visited.insert(frontier[0]);
        let (mut depth, mut stop) = (0, None);
        while !frontier.is_empty() && stop.is_none() {
            let mut next = vec![];
            for &state in &frontier {
                if let Err(why) = self.visit(state, &mut next) {
                    stop = Some(why);
                    break;
                }
            }
            depth += usize::from(!next.is_empty() || stop.is_some());
            frontier = next;
        }
        let (mut violation, mut trace) = (None, vec![]);
        if let Some(Stop::Broken(what, from, label)) = &stop {
            violation = Some((*what, depth));
            trace = self.trace(*from);
            trace.push(label.clone());
        }
        Found {
            states: self.visited.len(),
            transitions: self.transitions,
            depth,
            cells: self.cells.len(),
            rooms: self.parts.rooms.len(),
            messages: self.parts.envelopes.len(),
            closed: stop.is_none(),
            violation,
            trace,
        }
    }

    fn visit(&mut self, state: u128, next: &mut Vec<u128>) -> Result<(), Stop> {
        let requests = self.scope.requests;
        let ids = self.unpack(state);
        for &id in &ids[..requests] {
            self.expand(id);
        }
        let held: usize = ids[..requests].iter().map(|&id| self.at(id).held).sum();
        let room = held + self.scope.chunks <= self.scope.blocks;
        for i in 0..requests {
            if i > 0 && ids[i] == ids[i - 1] {
                continue; // alike
            }
            for edge in 0..self.at(ids[i]).edges.len() {
                let Edge { next: to, takes, one } = self.at(ids[i]).edges[edge];
                if takes && !room {
                    continue;
                }
                let to = match to {
                    Next::Cell(to) => to,
                    Next::Broken(what) => {
                        return Err(Stop::Broken(what, state, format!("{one:?}")));
                    }
                };
                let mut after = ids;
                if takes {
                    for id in &mut after[..requests] {
                        *id = self.at(*id).reissued;
                    }
                }
                after[i] = to;
                self.reach(after, state, next, || format!("request {i}: {one:?}"))?;
            }
        }
        for (at, fault) in FAULTS.iter().enumerate() {
            self.strike(at, *fault, ids, state, next)?;
        }
        Ok(())
    }

    /// A fault strikes every request at once.
    fn strike(
        &mut self,
        at: usize,
        fault: Fault,
        ids: Ids,
        state: u128,
        next: &mut Vec<u128>,
    ) -> Result<(), Stop> {
        let mut after = ids;
        for id in &mut after[..self.scope.requests] {
            match self.at(*id).faults[at] {
                None => return Ok(()),
                Some(Next::Cell(to)) => *id = to,
                Some(Next::Broken(what)) => {
                    return Err(Stop::Broken(what, state, format!("{fault:?}")));
                }
            }
        }
        self.reach(after, state, next, || format!("{fault:?}"))
    }

    fn reach(
        &mut self,
        ids: Ids,
        from: u128,
        next: &mut Vec<u128>,
        label: impl FnOnce() -> String,
    ) -> Result<(), Stop> {
        self.transitions += 1;
        let state = self.pack(ids);
        if self.visited.insert(state).ok_or(Stop::Full)? {
            next.push(state);
            if let Some(parents) = &mut self.parents {
                parents.insert(state, (from, label()));
            }
        }
        Ok(())
    }

    fn at(&self, id: u32) -> &Expanded {
        self.expanded[id as usize].as_ref().expect("expanded before it is looked at")
    }

    fn expand(&mut self, id: u32) {
        if self.expanded.get(id as usize).is_some_and(Option::is_some) {
            return;
        }
        let (scope, parts) = (&self.scope, &mut self.parts);
        let cell = self.cells.get(id).clone();
        let mut edges = vec![];
        for one in cell.moves(scope, parts) {
            let next = match cell.after(one, scope, parts) {
                Err(violation) => Next::Broken(violation),
                Ok(after) => {
                    let to = self.cells.number(after);
                    if to == id {
                        continue;
                    }
                    Next::Cell(to)
                }
            };
            edges.push(Edge { next, takes: matches!(one, Move::Offer(_)), one });
        }
        let mut faults = [None; FAULTS.len()];
        for (slot, fault) in faults.iter_mut().zip(FAULTS) {
            *slot = cell.after_fault(fault, scope, parts).map(|after| match after {
                Err(violation) => Next::Broken(violation),
                Ok(after) => Next::Cell(self.cells.number(after)),
            });
        }
        let mut reissued = cell.clone();
        reissued.reissue(scope, parts);
        let reissued = self.cells.number(reissued);
        let held = cell.held(scope);
        if self.expanded.len() < self.cells.len() {
            self.expanded.resize_with(self.cells.len(), || None);
        }
        self.expanded[id as usize] = Some(Expanded { edges, faults, reissued, held });
    }

    fn bits(&self) -> usize {
        (128 / self.scope.requests).min(32)
    }

    fn pack(&self, mut ids: Ids) -> u128 {
        let ids = &mut ids[..self.scope.requests];
        ids.sort_unstable();
        let bits = self.bits();
        ids.iter().fold(0, |state, &id| {
            assert!(u64::from(id) + 1 < 1 << bits, "more cells than {bits} bits can number");
            state << bits | u128::from(id)
        })
    }

    fn unpack(&self, mut state: u128) -> Ids {
        let bits = self.bits();
        let mut ids = [0; 6];
        for id in ids[..self.scope.requests].iter_mut().rev() {
            *id = u32::try_from(state & ((1 << bits) - 1)).expect("at most 32 bits");
            state >>= bits;
        }
        ids
    }

    fn trace(&self, mut state: u128) -> Vec<String> {
        let mut trace = vec![];
        while let Some((from, label)) = self.parents.as_ref().and_then(|all| all.get(&state)) {
            trace.push(label.clone());
            state = *from;
        }
        trace.reverse();
        trace
    }
}
