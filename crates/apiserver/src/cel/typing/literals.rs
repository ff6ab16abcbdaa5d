//! What is looked at when the types fit: lists and maps of one type, and texts that are to be times or patterns.

use std::collections::HashMap;

use cel_core::Value as Cel;
use cel_core::types::{Expr, Spanned, SpannedExpr};

use super::places::Places;
use super::types::Type;
use super::{Faults, qualified};
use crate::cel::children::children;
use crate::cel::{eval, patterns};

/// Looks at the literals of an expression.
pub fn check(e: &SpannedExpr, types: &HashMap<i64, Type>, places: &Places<'_>, faults: &mut Faults) {
    Walk { types, places, faults }.visit(e, true);
}

struct Walk<'w> {
    types: &'w HashMap<i64, Type>,
    places: &'w Places<'w>,
    faults: &'w mut Faults,
}

impl Walk<'_> {
    /// `alike` where items must be of one type: those of `format` need not.
    fn visit(&mut self, e: &SpannedExpr, alike: bool) {
        let mut alike_within = alike;
        match &e.node {
            Expr::List(items) if alike => {
                self.alike(items.iter().map(|item| (&item.expr, item.optional)), true);
            }
            Expr::Map(entries) if alike => {
                self.alike(entries.iter().map(|entry| (&entry.key, false)), false);
                self.alike(entries.iter().map(|entry| (&entry.value, entry.optional)), false);
            }
            Expr::Call { expr, args } => {
                alike_within &= !matches!(&expr.node, Expr::Member { field, .. } if field == "format");
                self.literal(e, expr, args);
            }
            _ => {}
        }
        children(e, &mut |child| self.visit(child, alike_within));
    }

    fn alike<'e>(&mut self, items: impl Iterator<Item = (&'e SpannedExpr, bool)>, first_only: bool) {
        let mut wanted: Option<Type> = None;
        for (item, optional) in items {
            let Some(ty) = self.types.get(&item.id) else { continue };
            let ty = if optional { ty.inner() } else { ty.clone() };
            match &wanted {
                None => wanted = Some(ty),
                Some(wanted) if !wanted.is(&ty) => {
                    let why = format!("expected type '{wanted}' but found '{ty}'");
                    self.faults.insert((self.places.of_node(item), why));
                    if first_only {
                        return;
                    }
                }
                Some(_) => {}
            }
        }
    }

    /// A text that a function reads.
    fn literal(&mut self, e: &SpannedExpr, function: &SpannedExpr, args: &[SpannedExpr]) {
        let (name, target) = match &function.node {
            Expr::Member { expr, field, .. } => (field.clone(), Some(&expr.node)),
            _ => (qualified(function).unwrap_or_default(), None),
        };
        if let ("format", Some(Expr::String(text)), [Spanned { node: Expr::List(items), .. }]) =
            (name.as_str(), target, args)
        {
            let items: Vec<&SpannedExpr> = items.iter().map(|item| &item.expr).collect();
            if let Err((at, why)) = self.format(text, &items) {
                self.faults.insert((self.places.of_node(at.unwrap_or(e)), why));
            }
            return;
        }
        let Some(Spanned { node: Expr::String(text), span, .. }) = args.last() else { return };
        let is_bad = match (name.as_str(), args.len()) {
            ("duration" | "timestamp", 1) => {
                eval::run(&name, false, &[Cel::String(text.as_str().into())]).is_error()
            }
            ("matches", _) => patterns::compiled(text).is_err(),
            _ => false,
        };
        if is_bad {
            self.faults.insert((span.start, format!("invalid {name} argument")));
        }
    }

    /// The clauses of a format against what is to be formatted; the item that is wrong, if it is one.
    fn format<'e>(
        &self,
        text: &str,
        items: &[&'e SpannedExpr],
    ) -> Result<(), (Option<&'e SpannedExpr>, String)> {
        let (mut rest, mut count) = (text.chars().peekable(), 0);
        while let Some(c) = rest.next() {
            if c != '%' || rest.next_if_eq(&'%').is_some() {
                continue;
            }
            if rest.peek().is_none() {
                return Err((None, "unexpected end of string".into()));
            }
            let Some(item) = items.get(count) else {
                return Err((None, format!("index {count} out of range")));
            };
            count += 1;
            if rest.next_if_eq(&'.').is_some() {
                while rest.next_if(char::is_ascii_digit).is_some() {}
            }
            let clause = rest.next().unwrap_or_default();
            let ty = self.types.get(&item.id).unwrap_or(&Type::Dyn);
            if let Some(why) = misfit(clause, ty) {
                return Err(why.map_or_else(
                    || (None, format!("could not parse formatting clause: unrecognized formatting clause \"{clause}\"")),
                    |why| (Some(*item), format!("error during formatting: {why}, was given {}", base(ty))),
                ));
            }
        }
        match items.len() > count {
            true => Err((
                None,
                format!(
                    "too many arguments supplied to string.format (expected {count}, got {})",
                    items.len()
                ),
            )),
            false => Ok(()),
        }
    }
}

/// Why a value of a type cannot stand for a clause; nothing inside where there is no such clause.
fn misfit(clause: char, ty: &Type) -> Option<Option<&'static str>> {
    use Type::{Bool, Bytes, Double, Int, Object, Opaque, Optional, String, Uint};
    let (fits, why) = match clause {
        's' => (
            !matches!(ty, Opaque(_) | Object(_) | Optional(_)),
            "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps",
        ),
        'd' => (matches!(ty, Int | Uint), "decimal clause can only be used on integers"),
        'o' => (matches!(ty, Int | Uint), "octal clause can only be used on integers"),
        'b' => (matches!(ty, Int | Uint | Bool), "only integers and bools can be formatted as binary"),
        'f' => (matches!(ty, Double | String), "fixed-point clause can only be used on doubles"),
        'e' => (matches!(ty, Double | String), "scientific clause can only be used on doubles"),
        'x' | 'X' => (
            matches!(ty, Int | Uint | String | Bytes),
            "only integers, byte buffers, and strings can be formatted as hex",
        ),
        _ => return Some(None),
    };
    (!fits && !ty.is_dyn()).then_some(Some(why))
}

/// The name of a type without its parts.
fn base(ty: &Type) -> String {
    let name = ty.declared();
    name.split('(').next().unwrap_or_default().to_owned()
}
