//! A metric with all series of its labels: created once, and found by index.

use std::marker::PhantomData;

use metrics::{Counter, Gauge, Histogram, Label as Pair, describe_counter, describe_gauge};
use metrics::{counter, describe_histogram, gauge, histogram};

/// The values of a label: few, and fixed.
pub trait Label: Copy + 'static {
    const ALL: &'static [Self];

    fn as_str(self) -> &'static str;

    /// The index in [`Label::ALL`].
    fn index(self) -> usize;
}

/// No label, one, or two.
pub trait Labels: 'static {
    /// The texts of all combinations, in the order of [`Labels::index`].
    fn all() -> Vec<Vec<&'static str>>;

    fn index(&self) -> usize;
}

impl Labels for () {
    fn all() -> Vec<Vec<&'static str>> {
        vec![Vec::new()]
    }

    fn index(&self) -> usize {
        0
    }
}

impl<A: Label> Labels for A {
    fn all() -> Vec<Vec<&'static str>> {
        A::ALL.iter().map(|a| vec![a.as_str()]).collect()
    }

    fn index(&self) -> usize {
        Label::index(*self)
    }
}

impl<A: Label, B: Label> Labels for (A, B) {
    fn all() -> Vec<Vec<&'static str>> {
        let with = |a: &A| {
            let a = a.as_str();
            B::ALL.iter().map(move |b| vec![a, b.as_str()])
        };
        A::ALL.iter().flat_map(with).collect()
    }

    fn index(&self) -> usize {
        Label::index(self.0) * B::ALL.len() + Label::index(self.1)
    }
}

/// The kind of a metric.
pub trait Kind: Sized {
    const NAME: &'static str;

    fn register(name: &'static str, labels: Vec<Pair>) -> Self;

    fn describe(name: &'static str, help: &'static str);
}

impl Kind for Counter {
    const NAME: &'static str = "counter";

    fn register(name: &'static str, labels: Vec<Pair>) -> Self {
        counter!(name, labels)
    }

    fn describe(name: &'static str, help: &'static str) {
        describe_counter!(name, help);
    }
}

impl Kind for Gauge {
    const NAME: &'static str = "gauge";

    fn register(name: &'static str, labels: Vec<Pair>) -> Self {
        gauge!(name, labels)
    }

    fn describe(name: &'static str, help: &'static str) {
        describe_gauge!(name, help);
    }
}

impl Kind for Histogram {
    const NAME: &'static str = "histogram";

    fn register(name: &'static str, labels: Vec<Pair>) -> Self {
        histogram!(name, labels)
    }

    fn describe(name: &'static str, help: &'static str) {
        describe_histogram!(name, help);
    }
}

/// A metric.
pub struct Family<L, K> {
    each: Vec<K>,
    labels: PhantomData<fn(L)>,
}

impl<L: Labels, K: Kind> Family<L, K> {
    pub fn new(name: &'static str, labels: &[&'static str]) -> Self {
        let register = |values: Vec<&'static str>| {
            let pairs = labels.iter().zip(values).map(|(name, value)| Pair::new(*name, value));
            K::register(name, pairs.collect())
        };
        Self { each: L::all().into_iter().map(register).collect(), labels: PhantomData }
    }

    /// The series with these labels.
    pub fn of(&self, labels: L) -> &K {
        &self.each[labels.index()]
    }
}

/// A metric without labels is used as it is.
impl<K> std::ops::Deref for Family<(), K> {
    type Target = K;

    fn deref(&self) -> &K {
        &self.each[0]
    }
}
