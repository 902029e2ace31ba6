//! The places of an answer that a profile names, as one tree that is made once.
//!
//! The reader walks this tree while the bytes arrive, and keeps only the values that it names. A place below another
//! one that is kept, or behind `[key=value]`, is looked up in the kept bytes afterwards.

use std::ops::BitOr;

use crate::profile::{Pointer, Token};

/// Shortest limit of the name of a field, in bytes with escapes, up to which names are looked at.
const MIN_NAME_BYTES: usize = 128;

/// What a value is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Use {
    /// It may take as much memory as the whole answer may.
    pub(super) large: bool,
    /// Two different values of it make an answer useless.
    pub(super) decides: bool,
}

impl Use {
    /// A time, a name.
    pub(super) const SMALL: Self = Self {
        large: false,
        decides: false,
    };
    /// An output, an error.
    pub(super) const LARGE: Self = Self {
        large: true,
        decides: false,
    };
    /// What a verdict rests on.
    pub(super) const DECIDES: Self = Self {
        large: false,
        decides: true,
    };
}

impl BitOr for Use {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self {
            large: self.large || other.large,
            decides: self.decides || other.decides,
        }
    }
}

/// A place that was given to [`Builder::at`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(usize);

/// Number of a value that is kept.
pub(super) type Slot = usize;

/// Number of a node of the tree.
pub(super) type NodeId = usize;

/// The root of the tree: the whole document.
pub(super) const ROOT: NodeId = 0;

/// A value of the answer on the way to one that is kept, or such a value.
#[derive(Debug, Default)]
struct PlanNode {
    /// Members, by name; those of an array by their index.
    members: Vec<(Box<[u8]>, NodeId)>,
    /// Elements of an array.
    elements: Vec<(usize, NodeId)>,
    /// The value is kept.
    slot: Option<Slot>,
    /// All values that are kept below it.
    below: Vec<Slot>,
}

/// The tree.
#[derive(Debug)]
pub(super) struct Plan {
    nodes: Vec<PlanNode>,
    slots: Vec<Use>,
    whole: Option<Slot>,
    /// Where each place is, for each root: those of the first root first.
    places: Vec<(Slot, Box<[Token]>)>,
    /// How many places there are.
    count: usize,
    roots: usize,
    name_bytes: usize,
}

impl Plan {
    /// How many values are kept at most.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// What a value is for.
    pub(super) fn usage(&self, slot: Slot) -> Use {
        self.slots[slot]
    }

    /// The slot of the whole body, if that is kept.
    pub(super) fn whole(&self) -> Option<Slot> {
        self.whole
    }

    /// Whether nothing but the whole body is kept, which need not be JSON then.
    pub(super) fn is_whole_only(&self) -> bool {
        self.nodes.len() == 1
    }

    /// How many roots there are: objects that may be the run's.
    pub(super) fn roots(&self) -> usize {
        self.roots
    }

    /// Where a place is below a root: in which slot, and where in its value.
    pub(super) fn locate(&self, place: Place, root: usize) -> (Slot, &[Token]) {
        let (slot, rest) = &self.places[root * self.count + place.0];
        (*slot, rest)
    }

    /// Longest name, in bytes with escapes, that is looked at.
    pub(super) fn name_bytes(&self) -> usize {
        self.name_bytes
    }

    /// The member `name` of the object `node`.
    pub(super) fn member(&self, node: NodeId, name: &[u8]) -> Option<NodeId> {
        let mut members = self.nodes[node].members.iter();
        members
            .find(|(known, _)| **known == *name)
            .map(|(_, node)| *node)
    }

    /// The element `index` of the array `node`.
    pub(super) fn element(&self, node: NodeId, index: usize) -> Option<NodeId> {
        let mut elements = self.nodes[node].elements.iter();
        elements
            .find(|(known, _)| *known == index)
            .map(|(_, node)| *node)
    }

    /// The slot of a node, if its value is kept.
    pub(super) fn slot(&self, node: NodeId) -> Option<Slot> {
        self.nodes[node].slot
    }

    /// The slots below a node.
    pub(super) fn below(&self, node: NodeId) -> &[Slot] {
        &self.nodes[node].below
    }

    /// Whether an object (or else an array) at `node` has something that is kept.
    pub(super) fn follows(&self, node: NodeId, object: bool) -> bool {
        let node = &self.nodes[node];
        if object {
            !node.members.is_empty()
        } else {
            !node.elements.is_empty()
        }
    }
}

/// Makes a [`Plan`].
#[derive(Debug)]
pub(super) struct Builder {
    roots: Vec<Pointer>,
    places: Vec<(Pointer, Use)>,
}

impl Builder {
    /// For answers whose places are below one of `roots`.
    pub(super) fn new(roots: &[Pointer]) -> Self {
        let roots = match roots {
            [] => vec![Pointer(Vec::new())],
            roots => roots.to_vec(),
        };
        Self {
            roots,
            places: Vec::new(),
        }
    }

    /// Adds a place. One that is there already is the same.
    pub(super) fn at(&mut self, pointer: &Pointer, usage: Use) -> Place {
        if let Some(at) = self.places.iter().position(|(known, _)| known == pointer) {
            self.places[at].1 = self.places[at].1 | usage;
            return Place(at);
        }
        self.places.push((pointer.clone(), usage));
        Place(self.places.len() - 1)
    }

    /// Adds places.
    pub(super) fn all(&mut self, pointers: &[Pointer], usage: Use) -> Vec<Place> {
        pointers
            .iter()
            .map(|pointer| self.at(pointer, usage))
            .collect()
    }

    /// Makes the tree.
    pub(super) fn build(self) -> Plan {
        let absolute = |root: &Pointer, (place, usage): &(Pointer, Use)| {
            // The whole body has no root.
            let root = if place.0.is_empty() { &[] } else { &*root.0 };
            let tokens: Vec<Token> = root.iter().chain(&place.0).cloned().collect();
            (tokens, *usage)
        };
        let all: Vec<_> = self
            .roots
            .iter()
            .flat_map(|root| self.places.iter().map(|place| absolute(root, place)))
            .collect();
        let key = |token: &Token| matches!(token, Token::Key(_));
        // How many steps of a place the reader walks: up to a search, or to a value that is kept for another place.
        let direct = |tokens: &[Token]| tokens.iter().take_while(|token| key(token)).count();
        let kept: Vec<&[Token]> = all
            .iter()
            .map(|(tokens, _)| &tokens[..direct(tokens)])
            .collect();
        let walked = |tokens: &[Token]| {
            let direct = direct(tokens);
            (1..direct)
                .find(|steps| kept.contains(&&tokens[..*steps]))
                .unwrap_or(direct)
        };
        let mut plan = Plan {
            nodes: vec![PlanNode::default()],
            slots: Vec::new(),
            whole: None,
            places: Vec::new(),
            count: self.places.len(),
            roots: self.roots.len(),
            name_bytes: MIN_NAME_BYTES,
        };
        for (tokens, usage) in &all {
            let (walk, rest) = tokens.split_at(walked(tokens));
            let slot = plan.insert(walk, *usage);
            plan.places.push((slot, rest.into()));
        }
        plan.collect_below(ROOT);
        plan
    }
}

impl Plan {
    /// Adds a value that is kept.
    fn insert(&mut self, walk: &[Token], usage: Use) -> Slot {
        let mut at = ROOT;
        for token in walk {
            let (Token::Key(name) | Token::Where { key: name, .. }) = token;
            let next = self.nodes.len();
            at = match self.member(at, name.as_bytes()) {
                Some(node) => node,
                None => {
                    self.nodes.push(PlanNode::default());
                    let node = &mut self.nodes[at];
                    node.members.push((name.as_bytes().into(), next));
                    if let Some(index) = index(name) {
                        node.elements.push((index, next));
                    }
                    // Each byte of a name may be escaped as \u00xx, and one that is longer must not look like it.
                    self.name_bytes = self.name_bytes.max(6 * name.len() + 1);
                    next
                }
            };
        }
        let place = if at == ROOT {
            &mut self.whole
        } else {
            &mut self.nodes[at].slot
        };
        let slot = *place.get_or_insert(self.slots.len());
        if slot == self.slots.len() {
            self.slots.push(Use::default());
        }
        self.slots[slot] = self.slots[slot] | usage;
        slot
    }

    fn collect_below(&mut self, node: NodeId) -> Vec<Slot> {
        let children: Vec<NodeId> = self.nodes[node].members.iter().map(|(_, id)| *id).collect();
        let below: Vec<Slot> = children
            .into_iter()
            .flat_map(|child| self.collect_below(child))
            .collect();
        self.nodes[node].below.clone_from(&below);
        self.nodes[node].slot.into_iter().chain(below).collect()
    }
}

/// The index that a name stands for in an array (RFC 6901, 4): digits without a zero before them.
pub(super) fn index(name: &str) -> Option<usize> {
    let digits = name.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || (name.len() > 1 && name.starts_with('0')) {
        return None;
    }
    name.parse().ok()
}
