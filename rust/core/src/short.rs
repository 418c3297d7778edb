//! Lists that are short nearly always, in the allocation of whoever has them.
//!
//! ```text
//!   near  │ a │ b │ c │        the first N
//!   far   ──▶ d e f ..         the others, only while there are more
//! ```
//! A list with memory of its own is one more line, often one more page, to wait for.

use std::collections::VecDeque;

/// A queue whose first `N` entries lie inline.
#[derive(Debug)]
pub(crate) struct Short<T, const N: usize> {
    /// Without gaps: what is behind an empty place is empty.
    near: [Option<T>; N],
    #[expect(clippy::box_collection, reason = "nearly always none, and then to be small")]
    far: Option<Box<VecDeque<T>>>,
}

impl<T, const N: usize> Short<T, N> {
    pub(crate) fn new() -> Self {
        Self { near: [const { None }; N], far: None }
    }

    pub(crate) fn len(&self) -> usize {
        let num_far = self.far.as_ref().map_or(0, |far| far.len());
        num_far + self.near.iter().flatten().count()
    }

    pub(crate) fn push_back(&mut self, entry: T) {
        match self.near.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(entry),
            None => self.far.get_or_insert_default().push_back(entry),
        }
    }

    pub(crate) fn push_front(&mut self, entry: T) {
        let mut last = Some(entry);
        for place in &mut self.near {
            std::mem::swap(place, &mut last);
        }
        if let Some(last) = last {
            self.far.get_or_insert_default().push_front(last);
        }
    }

    pub(crate) fn pop_front(&mut self) -> Option<T> {
        let mut next = self.far.as_mut().and_then(|far| far.pop_front());
        for place in self.near.iter_mut().rev() {
            std::mem::swap(place, &mut next);
        }
        if self.far.as_ref().is_some_and(|far| far.is_empty()) {
            self.far = None;
        }
        next
    }

    pub(crate) fn get(&self, place: usize) -> Option<&T> {
        match self.near.get(place) {
            Some(entry) => entry.as_ref(),
            None => self.far.as_ref().and_then(|far| far.get(place - N)),
        }
    }

    pub(crate) fn get_mut(&mut self, place: usize) -> Option<&mut T> {
        match self.near.get_mut(place) {
            Some(entry) => entry.as_mut(),
            None => self.far.as_mut().and_then(|far| far.get_mut(place - N)),
        }
    }

    /// Puts what `change` makes of an entry in its place.
    pub(crate) fn change<R>(
        &mut self,
        place: usize,
        change: impl FnOnce(T) -> (T, R),
    ) -> Option<R> {
        let near = self.near.get_mut(place);
        let (entry, told) = match near {
            Some(near) => change(near.take()?),
            None => change(self.far.as_mut()?.remove(place - N)?),
        };
        match (self.near.get_mut(place), &mut self.far) {
            (Some(near), _) => *near = Some(entry),
            (None, Some(far)) => far.insert(place - N, entry),
            (None, None) => {}
        }
        Some(told)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.near.iter().flatten().chain(self.far.iter().flat_map(|far| far.iter()))
    }

    /// All entries, in order; none is left.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = T> + use<T, N> {
        let Self { near, far } = std::mem::replace(self, Self::new());
        near.into_iter().flatten().chain(far.into_iter().flat_map(|far| far.into_iter()))
    }
}

impl<T, const N: usize> FromIterator<T> for Short<T, N> {
    fn from_iter<I: IntoIterator<Item = T>>(entries: I) -> Self {
        let mut short = Self::new();
        entries.into_iter().for_each(|entry| short.push_back(entry));
        short
    }
}

/// Numbers in one slice, inline while they are no more than `N`.
#[derive(Debug)]
pub(crate) struct Ids<const N: usize> {
    num_near: u32,
    near: [i32; N],
    /// All of them, if they are more than fit.
    far: Vec<i32>,
}

impl<const N: usize> Ids<N> {
    pub(crate) fn new(ids: impl Iterator<Item = i32>) -> Self {
        let mut all = Self { num_near: 0, near: [0; N], far: Vec::new() };
        ids.for_each(|id| all.push(id));
        all
    }

    pub(crate) fn all(&self) -> &[i32] {
        if self.far.is_empty() { &self.near[..self.num_near as usize] } else { &self.far }
    }

    pub(crate) fn push(&mut self, id: i32) {
        if !self.far.is_empty() {
            self.far.push(id);
        } else if let Some(place) = self.near.get_mut(self.num_near as usize) {
            *place = id;
            self.num_near += 1;
        } else {
            self.far.extend_from_slice(&self.near);
            self.far.push(id);
            self.num_near = 0;
        }
    }

    /// The first so many go.
    pub(crate) fn pop_front(&mut self, count: usize) {
        if self.far.is_empty() {
            self.near.copy_within(count..self.num_near as usize, 0);
            self.num_near -= u32::try_from(count).expect("no more than are near");
            return;
        }
        self.far.drain(..count);
        if self.far.len() <= N {
            let far = std::mem::take(&mut self.far);
            for id in far {
                self.push(id);
            }
        }
    }

    pub(crate) fn get_mut(&mut self, place: usize) -> Option<&mut i32> {
        if self.far.is_empty() {
            self.near[..self.num_near as usize].get_mut(place)
        } else {
            self.far.get_mut(place)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Ids, Short};
    use std::collections::VecDeque;

    /// Grows and shrinks across the border between near and far, many times.
    #[test]
    fn a_short_list_is_a_queue() {
        let (mut short, mut queue) = (Short::<u64, 3>::new(), VecDeque::new());
        let mut draw = 1_u64;
        for step in 0..20_000 {
            draw = draw.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            match draw >> 61 {
                0..=2 => {
                    short.push_back(step);
                    queue.push_back(step);
                }
                3 => {
                    short.push_front(step);
                    queue.push_front(step);
                }
                4 if draw % 64 == 0 => {
                    assert!(short.take().eq(std::mem::take(&mut queue)));
                }
                _ => assert_eq!(short.pop_front(), queue.pop_front()),
            }
            assert_eq!(short.len(), queue.len());
            assert!(short.iter().eq(&queue));
            for place in 0..queue.len() + 5 {
                assert_eq!(short.get(place), queue.get(place));
                assert_eq!(short.get_mut(place), queue.get_mut(place));
            }
        }
        assert!(queue.into_iter().eq(short.take()) && short.len() == 0);
    }

    #[test]
    fn ids_are_one_slice_wherever_they_lie() {
        let (mut ids, mut list) = (Ids::<4>::new(0..3), vec![0, 1, 2]);
        let mut draw = 1_u64;
        for step in 0..20_000 {
            draw = draw.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            if draw >> 63 == 0 {
                ids.push(step);
                list.push(step);
            } else {
                let count = list.len().min((draw >> 61) as usize & 3);
                ids.pop_front(count);
                list.drain(..count);
            }
            if let Some(id) = ids.get_mut(1) {
                (*id, list[1]) = (step, step);
            }
            assert_eq!(ids.all(), list);
            assert_eq!(ids.get_mut(list.len()), None);
        }
    }
}
