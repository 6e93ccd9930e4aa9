//! The vector against `Vec`: the same steps, the same elements; and each element dropped once, whatever panics.

use std::cell::Cell;
use std::collections::hash_map::DefaultHasher;
use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

impl<T> PagedVec<T> {
    fn check_invariants(&self) {
        assert!(self.length <= self.capacity, "V1: {} elements of {}", self.length, self.capacity);
        assert!(self.as_ptr().is_aligned(), "V1: aligned");
        let bytes = self.capacity.saturating_mul(mem::size_of::<T>());
        assert!(bytes <= self.mapping.length(), "V1: {bytes} bytes of {}", self.mapping.length());
    }
}

thread_local! {
    /// Elements of this thread that were made and not dropped.
    static ALIVE: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    ALIVE.set(ALIVE.get() + change);
}

/// Makes sure that all elements that `body` makes are dropped once by its end.
fn drops_all<R>(body: impl FnOnce() -> R) -> R {
    assert_eq!(ALIVE.get(), 0);
    let result = body();
    assert_eq!(ALIVE.get(), 0, "elements leaked, or dropped twice");
    result
}

/// An element that is counted, and owns memory, so that a second drop, or a use after it, is noticed by more than one.
#[derive(Debug, PartialEq, PartialOrd)]
struct Counted(Box<u32>);

impl From<u32> for Counted {
    fn from(number: u32) -> Self {
        count(1);
        Self(Box::new(number))
    }
}

impl Clone for Counted {
    fn clone(&self) -> Self {
        Self::from(*self.0)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        count(-1);
    }
}

/// An element without size that is counted.
#[derive(Debug, PartialEq, PartialOrd)]
struct Nothing;

impl From<u32> for Nothing {
    fn from(_: u32) -> Self {
        count(1);
        Self
    }
}

impl Clone for Nothing {
    fn clone(&self) -> Self {
        Self::from(0)
    }
}

impl Drop for Nothing {
    fn drop(&mut self) {
        count(-1);
    }
}

/// Four to an OS page of 4 KiB: every few steps the vector grows.
#[derive(Clone, Debug, PartialEq, PartialOrd)]
struct Large([u32; 256]);

impl From<u32> for Large {
    fn from(number: u32) -> Self {
        Self([number; 256])
    }
}

/// Aligned to more than an OS page of 4 KiB. (Not to much more: elements pass through the stack.)
#[derive(Clone, Debug, PartialEq, PartialOrd)]
#[repr(align(16384))]
struct Aligned(u32);

impl From<u32> for Aligned {
    fn from(number: u32) -> Self {
        Self(number)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push(u32),
    Pop,
    Insert(usize, u32),
    Remove(usize),
    SwapRemove(usize),
    Truncate(usize),
    Drain(usize, usize, usize, usize),
    Retain(usize),
    Extend(usize),
    ExtendFromSlice(usize),
    Append(usize),
    Resize(usize, u32),
    Reserve(usize),
    ShrinkToFit,
    Clear,
    ClearAndRelease,
    Clone,
    CloneFrom(usize),
    IntoIter(usize, usize),
    Change(usize, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let index = 0..64usize;
    prop_oneof![
        8 => any::<u32>().prop_map(Step::Push),
        2 => Just(Step::Pop),
        4 => (index.clone(), any::<u32>()).prop_map(|(index, number)| Step::Insert(index, number)),
        2 => index.clone().prop_map(Step::Remove),
        2 => index.clone().prop_map(Step::SwapRemove),
        1 => index.clone().prop_map(Step::Truncate),
        2 => (index.clone(), index.clone(), 0..4usize, 0..4usize)
            .prop_map(|(start, end, front, back)| Step::Drain(start, end, front, back)),
        1 => (1..5usize).prop_map(Step::Retain),
        3 => index.clone().prop_map(Step::Extend),
        2 => index.clone().prop_map(Step::ExtendFromSlice),
        1 => index.clone().prop_map(Step::Append),
        1 => (index.clone(), any::<u32>()).prop_map(|(length, number)| Step::Resize(length, number)),
        1 => index.clone().prop_map(Step::Reserve),
        1 => Just(Step::ShrinkToFit),
        1 => Just(Step::Clear),
        1 => Just(Step::ClearAndRelease),
        1 => Just(Step::Clone),
        1 => index.clone().prop_map(Step::CloneFrom),
        1 => (0..8usize, 0..8usize).prop_map(|(front, back)| Step::IntoIter(front, back)),
        2 => (index, any::<u32>()).prop_map(|(index, number)| Step::Change(index, number)),
    ]
}

/// Takes each step with both, and compares them after each.
fn agrees_with_vec<T: From<u32> + Clone + PartialEq + PartialOrd + Debug>(steps: &[Step]) {
    let mut ours = PagedVec::<T>::new();
    let mut theirs = Vec::<T>::new();
    for step in steps {
        let length = theirs.len();
        let numbers = |count: usize| (0..count as u32).map(T::from);
        match *step {
            Step::Push(number) => {
                ours.push(number.into());
                theirs.push(number.into());
            }
            Step::Pop => assert_eq!(ours.pop(), theirs.pop()),
            Step::Insert(index, number) => {
                ours.insert(index % (length + 1), number.into());
                theirs.insert(index % (length + 1), number.into());
            }
            Step::Remove(index) if length != 0 => {
                assert_eq!(ours.remove(index % length), theirs.remove(index % length))
            }
            Step::SwapRemove(index) if length != 0 => {
                assert_eq!(ours.swap_remove(index % length), theirs.swap_remove(index % length));
            }
            Step::Remove(_) | Step::SwapRemove(_) => {}
            Step::Truncate(to) => {
                ours.truncate(to);
                theirs.truncate(to);
            }
            Step::Drain(start, end, front, back) => {
                let start = start % (length + 1);
                let end = start + end % (length - start + 1);
                let mut our_drain = ours.drain(start..end);
                let mut their_drain = theirs.drain(start..end);
                for _ in 0..front {
                    assert_eq!(our_drain.next(), their_drain.next());
                }
                for _ in 0..back {
                    assert_eq!(our_drain.next_back(), their_drain.next_back());
                }
                assert_eq!(our_drain.as_slice(), their_drain.as_slice());
                assert_eq!(our_drain.len(), their_drain.len());
            }
            Step::Retain(every) => {
                let [mut our_count, mut their_count] = [0; 2];
                let keep = |count: &mut usize| {
                    *count += 1;
                    !(*count).is_multiple_of(every)
                };
                ours.retain(|_| keep(&mut our_count));
                theirs.retain(|_| keep(&mut their_count));
                assert_eq!(our_count, their_count);
            }
            Step::Extend(count) => {
                // A filter says nothing of how many come.
                ours.extend(numbers(count).filter(|_| true));
                ours.extend(numbers(count));
                theirs.extend(numbers(count).chain(numbers(count)));
            }
            Step::ExtendFromSlice(count) => {
                let elements: Vec<T> = numbers(count).collect();
                ours.extend_from_slice(&elements);
                theirs.extend_from_slice(&elements);
            }
            Step::Append(count) => {
                let mut other: PagedVec<T> = numbers(count).collect();
                ours.append(&mut other);
                assert!(other.is_empty());
                theirs.extend(numbers(count));
            }
            Step::Resize(to, number) => {
                ours.resize(to, number.into());
                theirs.resize(to, number.into());
            }
            Step::Reserve(additional) => {
                ours.reserve(additional);
                assert!(ours.capacity() >= length + additional);
            }
            Step::ShrinkToFit => ours.shrink_to_fit(),
            Step::Clear => {
                ours.clear();
                theirs.clear();
            }
            Step::ClearAndRelease => {
                let capacity = ours.capacity();
                ours.clear_and_release().unwrap();
                assert_eq!(ours.capacity(), capacity);
                theirs.clear();
            }
            Step::Clone => ours = ours.clone(),
            Step::CloneFrom(count) => {
                ours.clone_from(&numbers(count).collect());
                theirs = numbers(count).collect();
            }
            Step::IntoIter(front, back) => {
                let mut our_elements = mem::take(&mut ours).into_iter();
                let mut their_elements = mem::take(&mut theirs).into_iter();
                for _ in 0..front {
                    assert_eq!(our_elements.next(), their_elements.next());
                }
                for _ in 0..back {
                    assert_eq!(our_elements.next_back(), their_elements.next_back());
                }
                assert_eq!(our_elements.as_slice(), their_elements.as_slice());
                // Half of the time the rest is dropped with the iterator.
                if front % 2 == 0 {
                    ours = our_elements.collect();
                    theirs = their_elements.collect();
                }
            }
            Step::Change(index, number) => {
                if let Some(element) = ours.get_mut(index) {
                    *element = number.into();
                    theirs[index] = number.into();
                }
            }
        }
        ours.check_invariants();
        assert_eq!(ours, theirs, "after {step:?}");
        assert_eq!(ours.partial_cmp(&ours.clone()), theirs.partial_cmp(&theirs.clone()));
    }
}

/// Miri takes a second for a step.
const STEPS: usize = if cfg!(miri) { 12 } else { 100 };

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig { cases: if cfg!(miri) { 3 } else { count }, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn bytes_agree_with_vec(steps in vec(step(), 0..STEPS)) {
        #[derive(Clone, Debug, PartialEq, PartialOrd)]
        struct Byte(u8);
        impl From<u32> for Byte {
            fn from(number: u32) -> Self {
                Self(number as u8)
            }
        }
        agrees_with_vec::<Byte>(&steps);
    }

    #[test]
    fn counted_elements_agree_with_vec_and_are_dropped_once(steps in vec(step(), 0..STEPS)) {
        drops_all(|| agrees_with_vec::<Counted>(&steps));
    }

    #[test]
    fn elements_without_size_agree_with_vec_and_are_dropped_once(steps in vec(step(), 0..STEPS)) {
        drops_all(|| agrees_with_vec::<Nothing>(&steps));
    }

    #[test]
    fn large_elements_agree_with_vec(steps in vec(step(), 0..STEPS)) {
        agrees_with_vec::<Large>(&steps);
    }
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn elements_aligned_to_more_than_a_page_agree_with_vec(steps in vec(step(), 0..STEPS * 2 / 5)) {
        agrees_with_vec::<Aligned>(&steps);
    }
}

/// A counted element of which one, when armed, panics as it is dropped.
struct Fragile {
    is_armed: bool,
    _counted: Counted,
}

fn fragile(armed: usize) -> PagedVec<Fragile> {
    (0..10).map(|index| Fragile { is_armed: index == armed, _counted: (index as u32).into() }).collect()
}

impl Drop for Fragile {
    fn drop(&mut self) {
        if self.is_armed {
            panic!("armed");
        }
    }
}

fn panics(body: impl FnOnce()) {
    assert!(catch_unwind(AssertUnwindSafe(body)).is_err());
}

#[test]
fn an_element_that_panics_when_dropped_does_not_keep_others_from_it() {
    drops_all(|| panics(|| drop(fragile(3))));
    drops_all(|| panics(|| drop(fragile(3).into_iter())));
    drops_all(|| {
        let mut vector = fragile(7);
        panics(|| vector.truncate(5));
        assert_eq!(vector.len(), 5);
    });
    drops_all(|| {
        let mut vector = fragile(4);
        panics(|| drop(vector.drain(2..6)));
        let left: Vec<u32> = vector.iter().map(|fragile| *fragile._counted.0).collect();
        assert_eq!(left, [0, 1, 6, 7, 8, 9]);
    });
    drops_all(|| {
        let mut vector = fragile(4);
        panics(|| vector.retain(|fragile| !(*fragile._counted.0).is_multiple_of(2)));
        // It got as far as the armed one; what it had not seen stays.
        let left: Vec<u32> = vector.iter().map(|fragile| *fragile._counted.0).collect();
        assert_eq!(left, [1, 3, 5, 6, 7, 8, 9]);
    });
    drops_all(|| {
        let mut vector = fragile(4);
        panics(|| drop(vector.clear_and_release()));
        assert_eq!(vector.len(), 0);
    });
}

#[test]
fn a_predicate_that_panics_leaves_what_it_kept_and_what_it_did_not_see() {
    drops_all(|| {
        let mut vector: PagedVec<Counted> = (0..10).map(Counted::from).collect();
        panics(|| {
            vector.retain(|element| {
                assert!(*element.0 != 6, "enough");
                !(*element.0).is_multiple_of(2)
            });
        });
        assert_eq!(vector.iter().map(|element| *element.0).collect::<Vec<_>>(), [1, 3, 5, 6, 7, 8, 9]);
    });
}

#[test]
fn an_iterator_or_clone_that_panics_leaves_what_came_before() {
    drops_all(|| {
        let mut vector: PagedVec<Counted> = (0..3).map(Counted::from).collect();
        panics(|| {
            vector.extend((0..10).map(|number| {
                assert!(number != 5, "enough");
                Counted::from(number)
            }));
        });
        assert_eq!(vector.len(), 8);
    });
    struct Reluctant(Counted);
    impl Clone for Reluctant {
        fn clone(&self) -> Self {
            assert!(*self.0.0 != 2, "enough");
            Self(self.0.clone())
        }
    }
    drops_all(|| {
        let vector: PagedVec<Reluctant> = (0..4).map(|number| Reluctant(number.into())).collect();
        panics(|| drop(vector.clone()));
        let mut other = PagedVec::new();
        panics(|| other.extend_from_slice(&vector));
        assert_eq!(other.len(), 2);
    });
}

#[test]
fn a_drain_that_is_never_dropped_leaks_and_does_no_harm() {
    struct Marked<'a>(u32, &'a Cell<u32>);
    impl Drop for Marked<'_> {
        fn drop(&mut self) {
            self.1.set(self.1.get() + 1);
        }
    }
    let dropped = Cell::new(0);
    let mut vector: PagedVec<Marked<'_>> = (0..10).map(|number| Marked(number, &dropped)).collect();
    mem::forget(vector.drain(3..5));
    assert_eq!(vector.len(), 3);
    vector.push(Marked(7, &dropped));
    assert_eq!(vector.iter().map(|element| element.0).collect::<Vec<_>>(), [0, 1, 2, 7]);
    drop(vector);
    // Those before the drain and the new one; the other seven are lost.
    assert_eq!(dropped.get(), 4);
}

#[test]
fn an_iterator_that_promises_too_much_or_too_little_is_believed_in_neither() {
    struct Liar(std::ops::Range<u32>, usize);
    impl Iterator for Liar {
        type Item = u32;
        fn next(&mut self) -> Option<u32> {
            self.0.next()
        }
        fn size_hint(&self) -> (usize, Option<usize>) {
            (self.1, Some(self.1))
        }
    }
    let count = 3 * page_bytes() as u32;
    for promised in [0, 1, 100_000] {
        let vector: PagedVec<u32> = Liar(0..count, promised).collect();
        assert!(vector.iter().copied().eq(0..count), "{promised}");
        vector.check_invariants();
    }
}

#[test]
fn elements_without_size_need_no_memory() {
    let mut vector = PagedVec::<()>::new();
    assert_eq!(vector.capacity(), usize::MAX);
    vector.resize(1_000_000, ());
    vector.reserve(usize::MAX - 1_000_000);
    assert!(panics_with(|| vector.reserve(usize::MAX)).contains("capacity overflow"));
    assert_eq!((vector.len(), vector.mapping.length()), (1_000_000, 0));
    vector.shrink_to_fit();
    vector.clear_and_release().unwrap();
    vector.hint(Hint::HugePages).unwrap();
    assert!(vector.is_empty());
}

fn panics_with(body: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(body)).unwrap_err();
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload.downcast::<&str>().map(|text| (*text).to_owned()).unwrap_or_default(),
    }
}

#[test]
fn what_vec_panics_at_panics_here_and_changes_nothing() {
    let mut vector = PagedVec::from(vec![1, 2, 3]);
    assert!(panics_with(|| vector.insert(4, 0)).contains("beyond the length 3"));
    assert!(panics_with(|| _ = vector.remove(3)).contains("beyond the last of 3"));
    assert!(panics_with(|| _ = vector.swap_remove(3)).contains("beyond the last of 3"));
    assert!(panics_with(|| drop(vector.drain(2..4))).contains("outside of 3 elements"));
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = 2..1;
    assert!(panics_with(|| drop(vector.drain(reversed))).contains("outside of 3 elements"));
    assert!(panics_with(|| drop(vector.drain(..=usize::MAX))).contains("outside of 3 elements"));
    assert!(panics_with(|| vector.reserve(usize::MAX)).contains("capacity overflow"));
    assert!(panics_with(|| drop(PagedVec::<u16>::with_capacity(usize::MAX / 2))).contains("capacity overflow"));
    assert_eq!(vector, [1, 2, 3]);
}

#[test]
fn capacity_is_what_was_asked_for_and_grows_by_doubling() {
    let page = page_bytes();
    assert_eq!(PagedVec::<u8>::new().capacity(), 0);
    let mut vector = PagedVec::<u8>::with_capacity(page + 1);
    assert_eq!(vector.capacity(), 2 * page);
    vector.resize(2 * page, 1);
    vector.push(2);
    assert_eq!(vector.capacity(), 4 * page);
    vector.reserve_exact(3 * page);
    assert_eq!(vector.capacity(), 6 * page);
    vector.shrink_to_fit();
    assert_eq!(vector.capacity(), 3 * page);
    vector.clear();
    vector.shrink_to_fit();
    assert_eq!((vector.capacity(), vector.mapping.length()), (0, 0));
    vector.push(3);
    assert_eq!(vector, [3]);
    // Elements that do not fill a page.
    assert_eq!(PagedVec::<[u8; 1000]>::with_capacity(1).capacity(), page / 1000);
}

#[test]
fn capacity_beyond_the_threshold_comes_in_huge_pages() {
    let huge = huge_page_bytes();
    let mut vector = PagedVec::<u8>::with_capacity(2 * huge + 1);
    assert_eq!(vector.capacity(), 3 * huge);
    vector.resize(10, 4);
    vector.shrink_to_fit();
    assert_eq!((vector.capacity(), &vector[..]), (page_bytes(), &[4; 10][..]));
}

#[test]
fn zeroed_is_zeros() {
    let vector = PagedVec::<[u32; 3]>::zeroed(1000).unwrap();
    assert_eq!(vector.len(), 1000);
    assert!(vector.iter().all(|element| *element == [0; 3]));
    // Of memory that was used before and given back, too.
    let mut again = PagedVec::<u8>::from(&[1; 5000][..]);
    again.clear_and_release().unwrap();
    assert_eq!(PagedVec::<u8>::zeroed(5000).unwrap(), [0; 5000]);
}

#[test]
fn it_looks_like_the_slice_it_holds() {
    let mut vector: PagedVec<i32> = [3, 1, 2].into_iter().collect();
    vector.sort_unstable();
    vector.extend(&[4, 5]);
    assert_eq!(vector, [1, 2, 3, 4, 5]);
    assert_eq!(vector, vec![1, 2, 3, 4, 5]);
    assert_eq!(vec![1, 2, 3, 4, 5], vector);
    assert_eq!(vector, &[1, 2, 3, 4, 5][..]);
    let greater = PagedVec::from(vec![1, 2, 4]);
    assert!(vector < greater);
    assert_eq!(vector.cmp(&PagedVec::from(vec![1, 2])), std::cmp::Ordering::Greater);
    assert_eq!(format!("{vector:?}"), "[1, 2, 3, 4, 5]");
    let hash = |value: &dyn Fn(&mut DefaultHasher)| {
        let mut hasher = DefaultHasher::new();
        value(&mut hasher);
        hasher.finish()
    };
    let theirs = Vec::from(vector.clone());
    assert_eq!(hash(&|state| vector.hash(state)), hash(&|state| theirs.hash(state)));
    for element in &mut vector {
        *element += 1;
    }
    assert_eq!((&vector).into_iter().sum::<i32>(), 20);
    let set: std::collections::HashSet<PagedVec<i32>> = [vector].into();
    assert!(set.contains(&[2, 3, 4, 5, 6][..]));
}

#[test]
fn elements_may_be_of_one_thread() {
    let mut vector = PagedVec::new();
    let shared = Rc::new(());
    vector.resize(100, shared.clone());
    assert_eq!(Rc::strong_count(&shared), 101);
    drop(vector);
    assert_eq!(Rc::strong_count(&shared), 1);
}

#[cfg(feature = "serde")]
mod serde {
    use super::*;

    proptest! {
        #![proptest_config(cases(50))]

        #[test]
        fn text_and_back_is_the_same_as_for_vec(numbers in vec(any::<Option<i32>>(), 0..500)) {
            let ours = PagedVec::from(&numbers[..]);
            let text = serde_json::to_string(&ours).unwrap();
            prop_assert_eq!(&text, &serde_json::to_string(&numbers).unwrap());
            prop_assert_eq!(serde_json::from_str::<PagedVec<Option<i32>>>(&text).unwrap(), ours);
        }
    }

    impl<'de> ::serde::Deserialize<'de> for Counted {
        fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            u32::deserialize(deserializer).map(Self::from)
        }
    }

    #[test]
    fn elements_that_came_before_an_error_are_dropped() {
        drops_all(|| {
            let error = serde_json::from_str::<PagedVec<Counted>>("[1, 2, \"three\"]").unwrap_err();
            assert!(error.to_string().contains("expected u32"), "{error}");
            assert!(serde_json::from_str::<PagedVec<Counted>>("7").unwrap_err().to_string().contains("a sequence"));
        });
    }

    #[test]
    fn a_length_that_is_only_stated_takes_no_memory() {
        use ::serde::Deserialize;
        use ::serde::de::value::SeqDeserializer;

        /// An iterator of three that says it has 2^60.
        struct Liar(std::ops::Range<u64>);
        impl Iterator for Liar {
            type Item = u64;
            fn next(&mut self) -> Option<u64> {
                self.0.next()
            }
            fn size_hint(&self) -> (usize, Option<usize>) {
                (1 << 60, Some(1 << 60))
            }
        }
        let deserializer = SeqDeserializer::<_, ::serde::de::value::Error>::new(Liar(0..3));
        let vector = PagedVec::<u64>::deserialize(deserializer).unwrap();
        assert_eq!(vector, [0, 1, 2]);
        assert!(vector.capacity() <= huge_page_bytes());
    }
}
