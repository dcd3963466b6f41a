//! What recorded statements ask of tables: which columns they compare, join, order by and read, and which tables they write.
//!
//! A statement's text is PostgreSQL's own, with `$1` where values stood. What cannot be read is left out and counted, never
//! guessed at.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use sqlparser::{
    ast::{
        AssignmentTarget, BinaryOperator, CopySource, Expr, FromTable, Ident, JoinConstraint,
        JoinOperator, ObjectName, OrderByKind, Query, Select, SelectItem, SetExpr,
        Statement as Sql, TableFactor, TableObject, TableWithJoins, UnaryOperator,
        UpdateTableFromKind, Visit, Visitor, visit_expressions,
    },
    dialect::PostgreSqlDialect,
    parser::Parser,
};

use super::facts::{Facts, Table};

/// How one table is used by one SELECT, UPDATE or DELETE.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Use {
    pub(crate) table: u32,
    alias: String,
    /// Columns that are compared with one value, or with a list of values.
    pub(crate) equal: Vec<i32>,
    /// Columns that are compared with a column of an outer query, or with what a subquery gives.
    pub(crate) outer: Vec<i32>,
    /// Columns that are compared with a bound, and whether with two.
    pub(crate) ranges: Vec<(i32, bool)>,
    /// Columns that must be null, or must not.
    pub(crate) nulls: Vec<(i32, bool)>,
    /// Boolean columns that must be true, or false.
    pub(crate) flags: Vec<(i32, bool)>,
    /// Columns that the result is ordered by, and whether downwards; only where it is ordered by this table alone.
    pub(crate) order: Vec<(i32, bool)>,
    /// All columns that are read.
    pub(crate) read: BTreeSet<i32>,
    /// Whether the whole row is read.
    pub(crate) whole: bool,
    /// How many more conditions there are that no index serves.
    pub(crate) others: u32,
}

/// One SELECT, UPDATE or DELETE, without those inside of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Block {
    pub(crate) uses: Vec<Use>,
    /// Pairs of columns that must be equal: places in `uses`, and columns.
    pub(crate) joins: Vec<((usize, i32), (usize, i32))>,
    /// Whether only the first rows are asked for.
    pub(crate) limited: bool,
}

/// What a statement writes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Write {
    /// Adds rows.
    Insert(u32),
    /// Changes these columns.
    Update(u32, Vec<i32>),
    /// Removes rows.
    Delete(u32),
}

impl Write {
    pub(crate) fn table(&self) -> u32 {
        match self {
            Self::Insert(table) | Self::Update(table, _) | Self::Delete(table) => *table,
        }
    }
}

/// What a statement asks.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Shape {
    pub(crate) blocks: Vec<Block>,
    pub(crate) write: Option<Write>,
}

impl Shape {
    /// The tables that it reads or writes.
    pub(crate) fn tables(&self) -> BTreeSet<u32> {
        self.blocks
            .iter()
            .flat_map(|block| block.uses.iter().map(|one| one.table))
            .chain(self.write.as_ref().map(Write::table))
            .collect()
    }
}

/// The tables by their names.
pub(crate) struct Names<'a> {
    by_name: BTreeMap<(&'a str, &'a str), &'a Table>,
    alone: BTreeMap<&'a str, Vec<&'a Table>>,
}

impl<'a> Names<'a> {
    pub(crate) fn of(facts: &'a Facts) -> Self {
        let mut by_name = BTreeMap::new();
        let mut alone: BTreeMap<&str, Vec<&Table>> = BTreeMap::new();
        for table in &facts.tables {
            by_name.insert((table.schema.as_str(), table.name.as_str()), table);
            alone.entry(table.name.as_str()).or_default().push(table);
        }
        Self { by_name, alone }
    }

    /// The table of this name: without a schema, the one in `public`, or the only one.
    fn table(&self, name: &ObjectName) -> Option<&'a Table> {
        let parts: Vec<String> = name
            .0
            .iter()
            .map(|part| part.as_ident().map(folded))
            .collect::<Option<_>>()?;
        match parts.as_slice() {
            [name] => {
                let found = self.alone.get(name.as_str())?;
                match found.as_slice() {
                    [one] => Some(*one),
                    several => several
                        .iter()
                        .copied()
                        .find(|table| table.schema == "public"),
                }
            }
            [.., schema, name] => self.by_name.get(&(schema.as_str(), name.as_str())).copied(),
            [] => None,
        }
    }
}

/// A name as PostgreSQL takes it: in small letters unless it is quoted.
fn folded(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

/// A recorded text as one that can be parsed and prepared: PostgreSQL records `interval '1 day'` as `interval $1`, which it
/// would not take itself.
pub(crate) fn preparable(text: &str) -> String {
    const TYPES: [&str; 6] = [
        "interval",
        "date",
        "timestamptz",
        "timestamp",
        "time",
        "numeric",
    ];
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, behind) = rest.split_at(at);
        let digits = behind[1..].bytes().take_while(u8::is_ascii_digit).count();
        let word = before.trim_end();
        let is_spaced = word.len() < before.len();
        let kind = TYPES.into_iter().find(|kind| {
            is_spaced
                && word.len() >= kind.len()
                && word.is_char_boundary(word.len() - kind.len())
                && word[word.len() - kind.len()..].eq_ignore_ascii_case(kind)
                && !word[..word.len() - kind.len()]
                    .ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '.')
        });
        match kind {
            Some(kind) if digits > 0 => {
                out.push_str(&word[..word.len() - kind.len()]);
                out.push_str(&behind[..=digits]);
                out.push_str("::");
                out.push_str(kind);
            }
            _ => {
                out.push_str(before);
                out.push_str(&behind[..=digits]);
            }
        }
        rest = &behind[digits + 1..];
    }
    out.push_str(rest);
    out
}

/// What a statement asks; nothing where it cannot be read, or concerns no table that is known.
pub(crate) fn shape(names: &Names<'_>, text: &str) -> Option<Shape> {
    let mut text = preparable(text);
    if text
        .trim_start()
        .get(..4)
        .is_some_and(|word| word.eq_ignore_ascii_case("copy"))
    {
        // The parser looks for the rows behind it.
        text.push_str(";\n");
    }
    let parsed = Parser::parse_sql(&PostgreSqlDialect {}, &text).ok()?;
    let [statement] = parsed.as_slice() else {
        return None;
    };
    let mut shape = Shape::default();
    match statement {
        Sql::Query(_) | Sql::Explain { .. } => {}
        Sql::Insert(insert) => {
            if let TableObject::TableName(name) = &insert.table {
                shape.write = names.table(name).map(|table| Write::Insert(table.oid));
            }
        }
        Sql::Copy {
            source: CopySource::Table { table_name, .. },
            to: false,
            ..
        } => {
            shape.write = names
                .table(table_name)
                .map(|table| Write::Insert(table.oid));
        }
        Sql::Update {
            table,
            assignments,
            from,
            selection,
            ..
        } => {
            let mut tables = vec![table];
            if let Some(
                UpdateTableFromKind::AfterSet(more) | UpdateTableFromKind::BeforeSet(more),
            ) = from
            {
                tables.extend(more);
            }
            let block = block_of(names, &tables, selection.as_ref(), |_, _| {});
            if let TableFactor::Table { name, .. } = &table.relation
                && let Some(target) = names.table(name)
            {
                let set = assignments
                    .iter()
                    .flat_map(|one| match &one.target {
                        AssignmentTarget::ColumnName(name) => vec![name],
                        AssignmentTarget::Tuple(names) => names.iter().collect(),
                    })
                    .filter_map(|name| {
                        let ident = name.0.last()?.as_ident()?;
                        Some(target.named(&folded(ident))?.number)
                    })
                    .collect();
                shape.write = Some(Write::Update(target.oid, set));
            }
            shape.blocks.extend(block.map(whole_rows));
        }
        Sql::Delete(delete) => {
            let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
            let mut tables: Vec<&TableWithJoins> = from.iter().collect();
            tables.extend(delete.using.iter().flatten());
            if let Some(TableFactor::Table { name, .. }) = from.first().map(|from| &from.relation) {
                shape.write = names.table(name).map(|table| Write::Delete(table.oid));
            }
            let block = block_of(names, &tables, delete.selection.as_ref(), |_, _| {});
            shape.blocks.extend(block.map(whole_rows));
        }
        _ => return None,
    }
    let mut queries = Queries {
        names,
        blocks: Vec::new(),
    };
    let _walked_to_the_end = statement.visit(&mut queries);
    shape.blocks.extend(queries.blocks);
    (!shape.blocks.is_empty() || shape.write.is_some()).then_some(shape)
}

/// Who changes or removes a row reads it whole.
fn whole_rows(mut block: Block) -> Block {
    for one in &mut block.uses {
        one.whole = true;
    }
    block
}

/// Finds all SELECTs of a statement.
struct Queries<'a, 'b> {
    names: &'b Names<'a>,
    blocks: Vec<Block>,
}

impl Visitor for Queries<'_, '_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let limited = query.limit_clause.is_some() || query.fetch.is_some();
        self.set_expr(&query.body, query, limited);
        ControlFlow::Continue(())
    }
}

impl Queries<'_, '_> {
    fn set_expr(&mut self, body: &SetExpr, query: &Query, limited: bool) {
        match body {
            SetExpr::Select(select) => self.select(select, query, limited),
            SetExpr::SetOperation { left, right, .. } => {
                self.set_expr(left, query, false);
                self.set_expr(right, query, false);
            }
            // Queries of their own are visited by themselves.
            _ => {}
        }
    }

    fn select(&mut self, select: &Select, query: &Query, limited: bool) {
        let tables: Vec<&TableWithJoins> = select.from.iter().collect();
        let block = block_of(
            self.names,
            &tables,
            select.selection.as_ref(),
            |scope, block| {
                for item in &select.projection {
                    match item {
                        SelectItem::Wildcard(_) => {
                            for one in &mut block.uses {
                                one.whole = true;
                            }
                        }
                        SelectItem::QualifiedWildcard(..) => {
                            let shown = item.to_string().to_lowercase();
                            for one in &mut block.uses {
                                one.whole |= shown.starts_with(&format!("{}.", one.alias));
                            }
                        }
                        _ => scope.read(item, block),
                    }
                }
                scope.read(&select.group_by, block);
                scope.read(&select.having, block);
                scope.read(&query.order_by, block);
                // An order over grouped rows is not the table's.
                let is_grouped = match &select.group_by {
                    sqlparser::ast::GroupByExpr::Expressions(expressions, _) => {
                        !expressions.is_empty()
                    }
                    sqlparser::ast::GroupByExpr::All(_) => true,
                };
                if !is_grouped && select.distinct.is_none() {
                    scope.order(query, block);
                }
                block.limited = limited && !is_grouped;
            },
        );
        self.blocks.extend(block);
    }
}

/// The tables that names of columns may belong to.
struct Scope<'a> {
    tables: Vec<&'a Table>,
    aliases: Vec<String>,
}

impl Scope<'_> {
    /// The column that an expression is, if it is one of these tables'.
    fn column(&self, expr: &Expr) -> Option<(usize, i32)> {
        match expr {
            Expr::Nested(inner) => self.column(inner),
            // `lower(x)::text` is none; a column that is merely shown as another type is none either, for an index.
            Expr::Identifier(ident) => {
                let name = folded(ident);
                let mut found = self
                    .tables
                    .iter()
                    .enumerate()
                    .filter_map(|(at, table)| Some((at, table.named(&name)?.number)));
                let one = found.next()?;
                found.next().is_none().then_some(one)
            }
            Expr::CompoundIdentifier(parts) => {
                let [.., table, column] = parts.as_slice() else {
                    return None;
                };
                let (table, column) = (folded(table), folded(column));
                let at = self.aliases.iter().position(|alias| *alias == table)?;
                Some((at, self.tables[at].named(&column)?.number))
            }
            _ => None,
        }
    }

    /// Notes all columns that are read.
    fn read<T: Visit>(&self, part: &T, block: &mut Block) {
        let _walked_to_the_end = visit_expressions(part, |expr| {
            if let Some((at, column)) = self.column(expr) {
                block.uses[at].read.insert(column);
            }
            ControlFlow::<()>::Continue(())
        });
    }

    /// Which of these tables an expression names, and whether it names any column at all.
    fn names(&self, expr: &Expr) -> (BTreeSet<usize>, bool) {
        let (mut own, mut any) = (BTreeSet::new(), false);
        let _walked_to_the_end = visit_expressions(expr, |expr| {
            if matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_)) {
                any = true;
                own.extend(self.column(expr).map(|(at, _)| at));
            }
            ControlFlow::<()>::Continue(())
        });
        (own, any)
    }

    fn order(&self, query: &Query, block: &mut Block) {
        let Some(OrderByKind::Expressions(expressions)) =
            query.order_by.as_ref().map(|by| &by.kind)
        else {
            return;
        };
        let mut order = Vec::new();
        for one in expressions {
            let descending = one.options.asc == Some(false);
            // An index upwards read backwards has nulls first: only the usual places are looked for.
            let usual = one
                .options
                .nulls_first
                .is_none_or(|first| first == descending);
            match self.column(&one.expr) {
                Some(column) if usual => order.push((column, descending)),
                _ => return,
            }
        }
        let Some(((at, _), _)) = order.first().copied() else {
            return;
        };
        if order.iter().all(|((other, _), _)| *other == at) {
            block.uses[at].order = order
                .into_iter()
                .map(|((_, column), descending)| (column, descending))
                .collect();
        }
    }

    fn condition(&self, expr: &Expr, block: &mut Block) {
        use BinaryOperator as Op;
        match expr {
            Expr::Nested(inner) => self.condition(inner, block),
            Expr::BinaryOp {
                left,
                op: Op::And,
                right,
            } => {
                self.condition(left, block);
                self.condition(right, block);
            }
            Expr::BinaryOp {
                left,
                op: op @ (Op::Eq | Op::Lt | Op::LtEq | Op::Gt | Op::GtEq),
                right,
            } => {
                let (l, r) = (self.column(left), self.column(right));
                if let (Op::Eq, Some(l), Some(r)) = (op, l, r) {
                    if l.0 == r.0 {
                        block.uses[l.0].others += 1;
                    } else {
                        block.joins.push((l, r));
                    }
                    return;
                }
                let (column, other) = match (l, r) {
                    (Some(column), None) => (column, right),
                    (None, Some(column)) => (column, left),
                    _ => return self.other(expr, block),
                };
                let (own, any) = self.names(other);
                let one = &mut block.uses[column.0];
                if !own.is_empty() {
                    one.others += 1;
                } else if *op == Op::Eq {
                    let is_outer = any || matches!(**other, Expr::Subquery(_));
                    let list = if is_outer {
                        &mut one.outer
                    } else {
                        &mut one.equal
                    };
                    if !list.contains(&column.1) {
                        list.push(column.1);
                    }
                } else if let Some(range) = one.ranges.iter_mut().find(|range| range.0 == column.1)
                {
                    range.1 = true;
                } else {
                    one.ranges.push((column.1, false));
                }
            }
            Expr::Between {
                expr: inner,
                negated: false,
                ..
            } => match self.column(inner) {
                Some((at, column)) => block.uses[at].ranges.push((column, true)),
                None => self.other(expr, block),
            },
            Expr::InList {
                expr: inner,
                negated: false,
                ..
            }
            | Expr::AnyOp {
                left: inner,
                compare_op: Op::Eq,
                ..
            } => match self.column(inner) {
                Some((at, column)) => block.uses[at].equal.push(column),
                None => self.other(expr, block),
            },
            Expr::InSubquery {
                expr: inner,
                negated: false,
                ..
            } => match self.column(inner) {
                Some((at, column)) => block.uses[at].outer.push(column),
                None => self.other(expr, block),
            },
            Expr::IsNull(inner) | Expr::IsNotNull(inner) => match self.column(inner) {
                Some((at, column)) => block.uses[at]
                    .nulls
                    .push((column, matches!(expr, Expr::IsNull(_)))),
                None => self.other(expr, block),
            },
            Expr::UnaryOp {
                op: UnaryOperator::Not,
                expr: inner,
            }
            | Expr::IsFalse(inner) => self.flag(inner, false, expr, block),
            Expr::IsTrue(inner) => self.flag(inner, true, expr, block),
            Expr::Identifier(_) | Expr::CompoundIdentifier(_) => {
                self.flag(expr, true, expr, block);
            }
            _ => self.other(expr, block),
        }
    }

    fn flag(&self, inner: &Expr, value: bool, whole: &Expr, block: &mut Block) {
        match self.column(inner) {
            Some((at, column))
                if self.tables[at]
                    .column(column)
                    .is_some_and(|column| column.boolean) =>
            {
                block.uses[at].flags.push((column, value));
            }
            _ => self.other(whole, block),
        }
    }

    /// A condition that no index serves.
    fn other(&self, expr: &Expr, block: &mut Block) {
        for at in self.names(expr).0 {
            block.uses[at].others += 1;
        }
    }
}

/// What one SELECT, UPDATE or DELETE asks of its tables; nothing where it has none that are known.
fn block_of(
    names: &Names<'_>,
    from: &[&TableWithJoins],
    selection: Option<&Expr>,
    more: impl FnOnce(&Scope<'_>, &mut Block),
) -> Option<Block> {
    let mut scope = Scope {
        tables: Vec::new(),
        aliases: Vec::new(),
    };
    let mut conditions = Vec::new();
    for tables in from {
        add(names, &tables.relation, &mut scope, &mut conditions);
        for join in &tables.joins {
            add(names, &join.relation, &mut scope, &mut conditions);
            use JoinOperator as J;
            if let J::Join(JoinConstraint::On(on))
            | J::Inner(JoinConstraint::On(on))
            | J::Left(JoinConstraint::On(on))
            | J::LeftOuter(JoinConstraint::On(on))
            | J::Right(JoinConstraint::On(on))
            | J::RightOuter(JoinConstraint::On(on))
            | J::FullOuter(JoinConstraint::On(on)) = &join.join_operator
            {
                conditions.push(on);
            }
        }
    }
    if scope.tables.is_empty() {
        return None;
    }
    let mut block = Block {
        uses: scope
            .tables
            .iter()
            .zip(&scope.aliases)
            .map(|(table, alias)| Use {
                table: table.oid,
                alias: alias.clone(),
                ..Use::default()
            })
            .collect(),
        ..Block::default()
    };
    conditions.extend(selection);
    for condition in conditions {
        scope.condition(condition, &mut block);
        scope.read(condition, &mut block);
    }
    more(&scope, &mut block);
    Some(block)
}

fn add<'a, 'e>(
    names: &Names<'a>,
    factor: &'e TableFactor,
    scope: &mut Scope<'a>,
    conditions: &mut Vec<&'e Expr>,
) {
    match factor {
        TableFactor::Table {
            name,
            alias,
            args: None,
            ..
        } => {
            if let Some(table) = names.table(name) {
                let alias = match alias {
                    Some(alias) => folded(&alias.name),
                    None => table.name.clone(),
                };
                scope.tables.push(table);
                scope.aliases.push(alias);
            }
        }
        TableFactor::NestedJoin {
            table_with_joins, ..
        } => {
            add(names, &table_with_joins.relation, scope, conditions);
            for join in &table_with_joins.joins {
                add(names, &join.relation, scope, conditions);
                if let JoinOperator::Join(JoinConstraint::On(on))
                | JoinOperator::Inner(JoinConstraint::On(on)) = &join.join_operator
                {
                    conditions.push(on);
                }
            }
        }
        // Queries in FROM are visited by themselves.
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::testing::{facts, table};

    fn of(text: &str) -> Option<Shape> {
        let facts = facts(vec![
            table(
                1,
                "orders",
                &["id", "customer", "made", "state", "gone", "paid"],
            ),
            table(2, "customers", &["id", "name", "country"]),
        ]);
        shape(&Names::of(&facts), text)
    }

    #[test]
    fn conditions_joins_order_and_columns_are_told_apart() {
        let shape = of(
            "SELECT o.id, c.name FROM orders o JOIN public.customers AS c ON c.id = o.customer
             WHERE o.state = $1 AND o.made > now() - interval $2 AND o.gone IS NULL AND (c.country = ANY($3))
             ORDER BY o.made DESC LIMIT $4",
        )
        .unwrap();
        let [block] = shape.blocks.as_slice() else {
            panic!("{shape:?}")
        };
        let (orders, customers) = (&block.uses[0], &block.uses[1]);
        assert_eq!(
            (orders.equal.as_slice(), &orders.ranges),
            (&[4][..], &vec![(3, false)])
        );
        assert_eq!(
            (&orders.nulls, &orders.order),
            (&vec![(5, true)], &vec![(3, true)])
        );
        assert_eq!(customers.equal, [3]);
        assert_eq!(block.joins, [((1, 1), (0, 2))]);
        assert!(block.limited && !orders.whole);
        assert_eq!(customers.read, BTreeSet::from([1, 2, 3]));
    }

    #[test]
    fn what_is_written_is_known_and_rows_that_are_changed_are_read_whole() {
        let update = of("UPDATE orders SET state = $1, made = now() WHERE id = $2").unwrap();
        assert_eq!(update.write, Some(Write::Update(1, vec![4, 3])));
        assert!(update.blocks[0].uses[0].whole);
        assert_eq!(update.blocks[0].uses[0].equal, [1]);
        let insert =
            of("INSERT INTO orders (id, state) VALUES ($1, $2) ON CONFLICT DO NOTHING").unwrap();
        assert_eq!(
            (insert.write, insert.blocks),
            (Some(Write::Insert(1)), vec![])
        );
        let delete = of("DELETE FROM orders WHERE customer = $1 RETURNING id").unwrap();
        assert_eq!(delete.write, Some(Write::Delete(1)));
        assert_eq!(
            of("COPY orders FROM STDIN").unwrap().write,
            Some(Write::Insert(1))
        );
    }

    #[test]
    fn queries_inside_of_queries_have_blocks_of_their_own() {
        let shape = of(
            "WITH late AS (SELECT customer FROM orders WHERE made < $1)
             SELECT count(*) FROM customers c WHERE EXISTS (SELECT $2 FROM orders o WHERE o.customer = c.id AND NOT o.paid)
             AND c.id IN (SELECT customer FROM late)",
        )
        .unwrap();
        assert_eq!(shape.blocks.len(), 3, "{shape:#?}");
        let inner = shape
            .blocks
            .iter()
            .find(|block| !block.uses[0].outer.is_empty() && block.uses[0].table == 1)
            .unwrap();
        assert_eq!(inner.uses[0].outer, [2]);
        // `paid` is no boolean here.
        assert_eq!(inner.uses[0].others, 1);
    }

    #[test]
    fn what_cannot_be_read_is_none_and_texts_are_made_preparable() {
        for text in [
            "",
            "VACUUM orders",
            "SELECT 1",
            "SELECT FROM WHERE",
            "SELECT * FROM nowhere WHERE a = $1",
        ] {
            assert!(of(text).is_none(), "{text}");
        }
        assert_eq!(
            preparable("a > date $1 - INTERVAL $12 and my_date $3, $4::date, 'x$'"),
            "a > $1::date - $12::interval and my_date $3, $4::date, 'x$'"
        );
    }
}
