//! Reads directives, scopes, labels and operands; [`super::decode`] does the instructions.

use std::collections::HashMap;

use super::Error;
use super::builder::{Builder, Place, Register, Scope, type_bits};
use super::decode::{self, Operand};
use super::instruction::{Instruction, Op, Predicate};
use super::lexer::{self, Placed, Token};
use super::module::{Function, Initial, Module, Parameter, Variable};
use super::operands::Operands;

pub(super) struct Parser<'a> {
    tokens: Vec<Placed<'a>>,
    at: usize,
    module: Module,
    pub(super) globals: HashMap<String, Place>,
}

/// Reads a module.
///
/// # Errors
/// The first thing that is malformed or not accepted, with its line.
pub fn parse(text: &str) -> Result<Module, Error> {
    let mut parser = Parser {
        tokens: lexer::tokens(text)?,
        at: 0,
        module: Module::default(),
        globals: HashMap::new(),
    };
    while parser.at < parser.tokens.len() {
        parser.top_level()?;
    }
    if parser.module.version == (0, 0) {
        return Err(Error::new(1, "no .version: not PTX"));
    }
    Ok(parser.module)
}

impl<'a> Parser<'a> {
    fn line(&self) -> u32 {
        let last = self.tokens.len().saturating_sub(1);
        self.tokens
            .get(self.at.min(last))
            .map_or(1, |placed| placed.line)
    }

    fn error(&self, message: impl Into<String>) -> Error {
        Error::new(self.line(), message)
    }

    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|placed| placed.token)
    }

    fn next(&mut self) -> Result<Token<'a>, Error> {
        let token = self
            .peek()
            .ok_or_else(|| self.error("the text ends here"))?;
        self.at += 1;
        Ok(token)
    }

    fn eat(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(Token::Mark(mark));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, mark: char) -> Result<(), Error> {
        if self.eat(mark) {
            return Ok(());
        }
        Err(self.error(format!("expected {mark}, found {:?}", self.peek())))
    }

    fn word(&mut self) -> Result<&'a str, Error> {
        match self.next()? {
            Token::Word(word) => Ok(word),
            token => {
                self.at -= 1;
                Err(self.error(format!("expected a name, found {token:?}")))
            }
        }
    }

    fn integer(&mut self) -> Result<i64, Error> {
        let negative = self.eat('-');
        match self.next()? {
            Token::Integer(value) if negative => Ok((value as i64).wrapping_neg()),
            Token::Integer(value) => Ok(value as i64),
            token => {
                self.at -= 1;
                Err(self.error(format!("expected an integer, found {token:?}")))
            }
        }
    }

    fn top_level(&mut self) -> Result<(), Error> {
        let word = self.word()?;
        match word {
            ".version" => {
                // 8.8 reads as one number.
                let version = match self.next()? {
                    Token::Double(bits) => format!("{}", f64::from_bits(bits)),
                    Token::Integer(number) => number.to_string(),
                    token => return Err(self.error(format!("not a version: {token:?}"))),
                };
                let (major, minor) = version.split_once('.').unwrap_or((&version, "0"));
                self.module.version = (major.parse().unwrap_or(0), minor.parse().unwrap_or(0));
            }
            ".target" => {
                self.module.target = self.word()?.to_owned();
                while self.eat(',') {
                    self.word()?;
                }
            }
            ".address_size" => {
                if self.integer()? != 64 {
                    return Err(self.error("only .address_size 64 is accepted"));
                }
            }
            ".visible" | ".weak" | ".extern" | ".common" => {}
            ".entry" => self.entry()?,
            ".func" => self.device_function()?,
            ".global" | ".const" | ".shared" => {
                let external =
                    self.at >= 2 && self.tokens[self.at - 2].token == Token::Word(".extern");
                self.variable(word, external)?;
            }
            ".file" | ".loc" | ".pragma" | ".section" | ".alias" => self.skip_directive(word)?,
            _ => {
                self.at -= 1;
                return Err(self.error(format!("{word} is not accepted here")));
            }
        }
        Ok(())
    }

    fn skip_directive(&mut self, word: &str) -> Result<(), Error> {
        let line = self.tokens[self.at - 1].line;
        match word {
            // A debug section's content is of no use here.
            ".section" => while self.next()? != Token::Mark('}') {},
            ".pragma" | ".alias" => while self.next()? != Token::Mark(';') {},
            _ => {
                while self
                    .tokens
                    .get(self.at)
                    .is_some_and(|placed| placed.line == line)
                {
                    self.at += 1;
                }
            }
        }
        Ok(())
    }

    /// A device function: declarations are passed over, definitions are not accepted (calls are not interpreted).
    fn device_function(&mut self) -> Result<(), Error> {
        let line = self.line();
        loop {
            match self.next()? {
                Token::Mark(';') => return Ok(()),
                Token::Mark('{') => {
                    return Err(Error::new(
                        line,
                        "calls of device functions are not interpreted: inline them (__forceinline__)",
                    ));
                }
                _ => {}
            }
        }
    }

    /// `.align 4 .b8 name[16]` after the state space: alignment, type, name, elements (`None`: unsized).
    fn declarator(&mut self) -> Result<(u64, &'a str, &'a str, Option<u64>), Error> {
        let mut align = 0;
        let mut vector = 1;
        let ty = loop {
            match self.word()? {
                ".align" => align = self.integer()? as u64,
                ".v2" => vector = 2,
                ".v4" => vector = 4,
                ".ptr" | ".global" | ".const" | ".shared" | ".local" | ".attribute" => {}
                word => break &word[1..],
            }
        };
        // `.param .u64 .ptr .global .align 1 name`
        let name = loop {
            match self.word()? {
                ".align" => {
                    self.integer()?;
                }
                ".ptr" | ".global" | ".const" | ".shared" | ".local" => {}
                word => break word,
            }
        };
        let bytes = type_bits(ty)
            .filter(|bits| *bits <= 64)
            .ok_or_else(|| self.error(format!("variables of type .{ty} are not accepted")))?
            / 8;
        let mut elements = Some(vector);
        while self.eat('[') {
            if self.eat(']') {
                elements = None;
            } else {
                let extent = self.integer()? as u64;
                elements = elements.map(|count| count * extent);
                self.expect(']')?;
            }
        }
        if align == 0 {
            align = u64::from(bytes) * vector;
        }
        Ok((align, ty, name, elements))
    }

    fn variable(&mut self, space: &str, external: bool) -> Result<(), Error> {
        let line = self.line();
        let (align, ty, name, elements) = self.declarator()?;
        let element = u64::from(type_bits(ty).unwrap_or(8)) / 8;
        let place = match (space, elements) {
            (".shared", Some(count)) if count > 0 => Place::Shared {
                align: align as u32,
                bytes: (count * element) as u32,
            },
            (".shared", _) => Place::DynamicShared {
                align: align as u32,
            },
            (_, Some(count)) if !external => {
                let initial = if self.eat('=') {
                    self.initial(element as usize)?
                } else {
                    Vec::new()
                };
                self.module.variables.push(Variable {
                    name: name.to_owned(),
                    constant: space == ".const",
                    align,
                    bytes: count * element,
                    initial,
                });
                Place::Variable(self.module.variables.len() - 1)
            }
            _ => {
                return Err(Error::new(
                    line,
                    format!("{name}: variables of other modules are not linked"),
                ));
            }
        };
        self.globals.insert(name.to_owned(), place);
        self.expect(';')
    }

    fn initial(&mut self, element: usize) -> Result<Vec<Initial>, Error> {
        let mut parts = Vec::new();
        let mut depth = 0;
        loop {
            if self.eat('{') {
                depth += 1;
            } else if self.eat('}') {
                depth -= 1;
            } else if !self.eat(',') {
                parts.push(self.initial_element(element)?);
            }
            if depth == 0 {
                return Ok(parts);
            }
        }
    }

    fn initial_element(&mut self, element: usize) -> Result<Initial, Error> {
        let bytes = |value: u64| Initial::Bytes(value.to_le_bytes()[..element].to_vec());
        Ok(match self.peek() {
            Some(Token::Single(bits)) => {
                self.at += 1;
                bytes(u64::from(bits))
            }
            Some(Token::Double(bits)) => {
                self.at += 1;
                bytes(bits)
            }
            Some(Token::Word(mut name)) => {
                self.at += 1;
                let wrapped = name == "generic";
                if wrapped {
                    self.expect('(')?;
                    name = self.word()?;
                    self.expect(')')?;
                }
                let offset = if self.eat('+') { self.integer()? } else { 0 };
                match self.globals.get(name) {
                    Some(Place::Variable(number)) => Initial::Address(*number, offset),
                    _ => return Err(self.error(format!("no variable {name} in global memory"))),
                }
            }
            _ => bytes(self.integer()? as u64),
        })
    }

    fn entry(&mut self) -> Result<(), Error> {
        let name = self.word()?.to_owned();
        let mut builder = Builder {
            function: Function {
                name,
                predicates: 1,
                ..Function::default()
            },
            ..Builder::default()
        };
        if self.eat('(') && !self.eat(')') {
            loop {
                if self.word()? != ".param" {
                    return Err(self.error("expected .param"));
                }
                let (align, ty, name, elements) = self.declarator()?;
                let bytes = type_bits(ty).unwrap_or(8) / 8 * elements.unwrap_or(0) as u32;
                let offset = builder
                    .function
                    .parameter_bytes
                    .next_multiple_of(align as u32);
                builder.function.parameter_bytes = offset + bytes;
                builder.function.parameters.push(Parameter {
                    name: name.to_owned(),
                    offset,
                    bytes,
                });
                if !self.eat(',') {
                    break;
                }
            }
            self.expect(')')?;
        }
        loop {
            match self.next()? {
                Token::Mark('{') => break,
                // A declaration.
                Token::Mark(';') => return Ok(()),
                Token::Word(".maxntid" | ".reqntid") => {
                    let mut threads = self.integer()?;
                    while self.eat(',') {
                        threads *= self.integer()?;
                    }
                    builder.function.max_threads = u32::try_from(threads).ok();
                }
                Token::Word(".reqnctapercluster") => {
                    let mut extents = [1; 3];
                    for (axis, extent) in extents.iter_mut().enumerate() {
                        if axis > 0 && !self.eat(',') {
                            break;
                        }
                        *extent = u32::try_from(self.integer()?).unwrap_or(0);
                    }
                    builder.function.cluster = Some(extents);
                }
                Token::Word(
                    ".minnctapersm" | ".maxnreg" | ".noreturn" | ".maxnctapersm"
                    | ".explicitcluster" | ".maxclusterrank",
                ) => {
                    if let Some(Token::Integer(_)) = self.peek() {
                        self.at += 1;
                    }
                }
                Token::Word(".pragma") => self.skip_directive(".pragma")?,
                token => {
                    self.at -= 1;
                    return Err(self.error(format!(
                        "{token:?} is not accepted before a function's body"
                    )));
                }
            }
        }
        builder.scopes.push(Scope::default());
        while !builder.scopes.is_empty() {
            self.statement(&mut builder)?;
        }
        let mut function = builder.function;
        // A label may stand at the end.
        function.code.push(Instruction {
            guard: Predicate::ALWAYS,
            op: Op::Exit,
            line: self.line(),
        });
        let product = |instruction: &&Instruction| matches!(instruction.op, Op::Wgmma(_));
        let target = self.module.architecture().unwrap_or_default();
        for instruction in &function.code {
            let Some((name, needs)) = instruction.op.needs() else {
                continue;
            };
            let own = &self.module.target;
            if own != needs && (needs == "sm_90a" || target.0 < 90) {
                let message = format!("{name} needs {needs}, and .target is {own}");
                return Err(Error::new(instruction.line, message));
            }
        }
        if function.code.iter().any(|of| product(&of)) {
            let operands = function
                .code
                .iter()
                .map(|of| Operands::of(&of.op))
                .collect();
            function.operands = operands;
        }
        self.module.functions.push(function);
        Ok(())
    }

    fn statement(&mut self, builder: &mut Builder) -> Result<(), Error> {
        let line = self.line();
        let mut guard = Predicate::ALWAYS;
        match self.next()? {
            Token::Mark('{') => {
                builder.scopes.push(Scope::default());
                return Ok(());
            }
            Token::Mark('}') => return builder.close(line),
            Token::Mark(';') => return Ok(()),
            Token::Mark('@') => {
                guard.negated = self.eat('!');
                let name = self.word()?;
                match builder.register(name) {
                    Some(Register::Predicate(register)) => guard.register = register,
                    _ => return Err(Error::new(line, format!("{name} is not a predicate"))),
                }
            }
            Token::Word(word) if self.peek() == Some(Token::Mark(':')) => {
                self.at += 1;
                let scope = builder
                    .scopes
                    .last_mut()
                    .ok_or_else(|| Error::new(line, "a label outside a function"))?;
                if self.peek() == Some(Token::Word(".branchtargets")) {
                    self.at += 1;
                    let mut labels = vec![self.word()?.to_owned()];
                    while self.eat(',') {
                        labels.push(self.word()?.to_owned());
                    }
                    scope.tables.insert(word.to_owned(), labels);
                    return self.expect(';');
                }
                let here = builder.function.code.len() as u32;
                if scope.labels.insert(word.to_owned(), here).is_some() {
                    return Err(Error::new(line, format!("label {word} stands twice")));
                }
                return Ok(());
            }
            Token::Word(directive) if directive.starts_with('.') => {
                return self.directive(builder, directive);
            }
            Token::Word(_) => self.at -= 1,
            token => return Err(Error::new(line, format!("unexpected {token:?}"))),
        }
        let opcode = self.word()?;
        let mut operands = Vec::new();
        if !self.eat(';') {
            loop {
                operands.push(self.operand()?);
                if !self.eat(',') {
                    break;
                }
            }
            if self.peek() != Some(Token::Mark(';')) {
                return Err(Error::new(
                    line,
                    format!("{opcode}: expected ;, found {:?}", self.peek()),
                ));
            }
            self.at += 1;
        }
        self.instruction(builder, guard, opcode, &operands, line)
    }

    fn instruction(
        &mut self,
        builder: &mut Builder,
        guard: Predicate,
        opcode: &str,
        operands: &[Operand<'a>],
        line: u32,
    ) -> Result<(), Error> {
        let here = builder.function.code.len();
        let jump = |builder: &mut Builder, slot, label: &str| {
            if let Some(scope) = builder.scopes.last_mut() {
                scope.jumps.push((here, slot, label.to_owned(), line));
            }
        };
        let op = match (opcode, operands) {
            ("bra" | "bra.uni", [Operand::Name(label)]) => {
                jump(builder, 0, label);
                Op::Branch { target: 0 }
            }
            ("brx.idx" | "brx.idx.uni", [Operand::Name(index), Operand::Name(table)]) => {
                let Some(Register::Value(index, _)) = builder.register(index) else {
                    return Err(Error::new(line, format!("{index} is not a register")));
                };
                let labels = builder
                    .scopes
                    .iter()
                    .rev()
                    .find_map(|scope| scope.tables.get(*table))
                    .cloned();
                let labels =
                    labels.ok_or_else(|| Error::new(line, format!("no .branchtargets {table}")))?;
                for (slot, label) in labels.iter().enumerate() {
                    jump(builder, slot, label);
                }
                Op::BranchIndexed {
                    index,
                    targets: vec![0; labels.len()].into(),
                }
            }
            _ => decode::decode(builder, &self.globals, opcode, operands, line)?,
        };
        builder.function.code.push(Instruction { guard, op, line });
        Ok(())
    }

    fn directive(&mut self, builder: &mut Builder, directive: &'a str) -> Result<(), Error> {
        let line = self.line();
        match directive {
            ".reg" => {
                let ty = &self.word()?[1..];
                loop {
                    let name = self.word()?;
                    let count = if self.eat('<') {
                        let count = self.integer()? as u32;
                        self.expect('>')?;
                        Some(count)
                    } else {
                        None
                    };
                    builder.declare(name, count, ty, line)?;
                    if !self.eat(',') {
                        break;
                    }
                }
                self.expect(';')
            }
            ".local" | ".shared" => {
                let (align, ty, name, elements) = self.declarator()?;
                let Some(elements) = elements else {
                    return Err(Error::new(line, format!("{name} has no size")));
                };
                let bytes = type_bits(ty).unwrap_or(8) / 8 * elements as u32;
                if directive == ".shared" {
                    builder
                        .own_shared
                        .insert(name.to_owned(), (align as u32, bytes));
                } else {
                    let base = builder.function.local_bytes.next_multiple_of(align as u32);
                    builder.function.local_bytes = base + bytes;
                    builder.local.insert(name.to_owned(), base);
                }
                self.expect(';')
            }
            ".global" | ".const" => self.variable(directive, false),
            ".loc" | ".pragma" | ".file" => self.skip_directive(directive),
            _ => Err(Error::new(
                line,
                format!("{directive} is not accepted in a function"),
            )),
        }
    }

    fn operand(&mut self) -> Result<Operand<'a>, Error> {
        let operand = match self.next()? {
            Token::Mark('[') => {
                let base = self.operand()?;
                let (base, offset) = match base {
                    Operand::Offset(name, offset) => (Operand::Name(name), offset),
                    base => (base, 0),
                };
                if self.eat(',') {
                    let Operand::Vector(coordinates) = self.operand()? else {
                        return Err(self.error("coordinates stand in braces"));
                    };
                    self.expect(']')?;
                    let map = Operand::Address(Box::new(base), offset);
                    return Ok(Operand::Tensor(Box::new(map), coordinates));
                }
                self.expect(']')?;
                return Ok(Operand::Address(Box::new(base), offset));
            }
            Token::Mark('{') => {
                let mut parts = vec![self.operand()?];
                while self.eat(',') {
                    parts.push(self.operand()?);
                }
                self.expect('}')?;
                return Ok(Operand::Vector(parts));
            }
            Token::Mark('!') => return Ok(Operand::Not(self.word()?)),
            Token::Mark('-') => match self.next()? {
                Token::Integer(value) => Operand::Integer(value.wrapping_neg()),
                Token::Double(bits) => Operand::Double((-f64::from_bits(bits)).to_bits()),
                token => return Err(self.error(format!("- before {token:?}"))),
            },
            Token::Integer(value) => Operand::Integer(value),
            Token::Single(bits) => Operand::Single(bits),
            Token::Double(bits) => Operand::Double(bits),
            Token::Word("_") => Operand::Sink,
            Token::Word(name) => {
                if self.eat('+') {
                    return Ok(Operand::Offset(name, self.integer()?));
                }
                if self.peek() == Some(Token::Mark('-')) {
                    return Ok(Operand::Offset(name, self.integer()?));
                }
                Operand::Name(name)
            }
            token => return Err(self.error(format!("not an operand: {token:?}"))),
        };
        if self.eat('|') {
            return Ok(Operand::Pair(Box::new(operand), Box::new(self.operand()?)));
        }
        Ok(operand)
    }
}
