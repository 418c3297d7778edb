//! Virtual time: what will happen, in order of microseconds, then in order of being planned.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// A virtual clock and what is still to come.
pub struct Agenda<E> {
    now_us: u64,
    num_planned: u64,
    entries: BinaryHeap<Reverse<Entry<E>>>,
}

struct Entry<E> {
    at_us: u64,
    order: u64,
    event: E,
}

impl<E> Agenda<E> {
    pub fn new() -> Self {
        Self { now_us: 0, num_planned: 0, entries: BinaryHeap::new() }
    }

    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    /// `event` happens `delay_us` from now.
    pub fn after(&mut self, delay_us: u64, event: E) {
        self.num_planned += 1;
        let entry = Entry { at_us: self.now_us + delay_us, order: self.num_planned, event };
        self.entries.push(Reverse(entry));
    }

    /// The next event; time moves to it.
    pub fn next(&mut self) -> Option<E> {
        let Reverse(entry) = self.entries.pop()?;
        self.now_us = entry.at_us;
        Some(entry.event)
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at_us, self.order).cmp(&(other.at_us, other.order))
    }
}
