"""Mutants of C functions: where a line can be changed so that it still looks like C.

Reads the bodies of functions token by token, with just enough grammar to know statements, heads
and calls. It relies on the layout of revdial.h (tests/tidy.sh): a function's braces stand in column
1, and a binary operator has a blank or the end of a line on both sides.
"""
import re
from collections import namedtuple

# A token, its place (lines and columns from 0), and the line after its end.
Token = namedtuple('Token', 'text line column')
Function = namedtuple('Function', 'name is_void first last')

# edits: [(first token, last token, text in their place)]
Mutant = namedtuple('Mutant', 'kind function line edits')

TOKEN = re.compile(r'''//.*|/\*.*?\*/|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|'''
                   r'''0[xX][0-9a-fA-F]+[uUlL]*|\d[\w.]*|[A-Za-z_]\w*|<<=|>>=|->|\+\+|--|<<|>>|'''
                   r'''[-+*/%&|^<>=!]=|&&|\|\||\S''')
RELATION = {'<': ('<=', '>='), '<=': ('<', '>'), '>': ('>=', '<='), '>=': ('>', '<'),
            '==': ('!=',), '!=': ('==',)}
ARITHMETIC = {'+': '-', '-': '+', '*': '/', '/': '*', '%': '/', '<<': '>>', '>>': '<<', '&': '|',
              '|': '&', '^': '&', '+=': '-=', '-=': '+=', '|=': '&=', '&=': '|=', '*=': '/=',
              '/=': '*=', '<<=': '>>=', '>>=': '<<='}
STEP = {'++': '--', '--': '++'}
LOGIC = {'&&': '||', '||': '&&'}
HEADS = ('if', 'while', 'for', 'switch', 'RVD_BASE_EACH')
TYPES = ('const', 'static', 'struct', 'enum', 'union', 'unsigned', 'int', 'char', 'void', 'typedef',
         'signed', 'short', 'long', 'double')
KINDS = ('relation', 'arithmetic', 'logic', 'constant', 'deletion', 'negation', 'arguments',
         'return')


def functions(lines, ignored):
    """The functions of a file, from the brace in column 1 to its fellow."""
    found, first, head = [], None, ''
    for n, line in enumerate(lines):
        if line.startswith('{'):
            name = re.search(r'(\w+)\(', head)
            first = n if name and n not in ignored else None
            is_void = bool(re.match(r'(REVDIAL_API |static |inline |RVD_\w+ )*void \w', head))
        elif line.startswith('}'):
            if first is not None:
                found.append(Function(name.group(1), is_void, first, n))
            first, head = None, ''
        elif re.match(r'[A-Za-z]', line):
            head = line
        elif first is None and line.startswith(' '):
            head += line
    return found


def tokens(lines, function):
    found = []
    for n in range(function.first, function.last + 1):
        if lines[n].startswith('#') or lines[n - 1].endswith('\\'):
            continue
        for match in TOKEN.finditer(lines[n]):
            if not match.group().startswith(('//', '/*')):
                found.append(Token(match.group(), n, match.start()))
    return found


class Reader:
    """Finds the mutants of one function."""

    def __init__(self, lines, function):
        self.lines, self.function = lines, function
        self.tokens = tokens(lines, function)
        self.fellow = self.match_brackets()
        self.mutants = []

    def match_brackets(self):
        fellow, is_open = {}, []
        for i, token in enumerate(self.tokens):
            if token.text in '([{':
                is_open.append(i)
            elif token.text in ')]}':
                fellow[is_open.pop()] = i
        return fellow

    def text(self, i):
        return self.tokens[i].text if 0 <= i < len(self.tokens) else ''

    def add(self, kind, *edits):
        first = self.tokens[edits[0][0]]
        places = [(self.tokens[a], self.tokens[b], text) for a, b, text in edits]
        self.mutants.append(Mutant(kind, self.function.name, first.line, places))

    def read(self):
        i = 1
        while i < len(self.tokens) - 1:
            i = self.statement(i)
        return self.mutants

    def statement(self, i):
        """Reads the head of a statement, or all of a simple one; returns where the next begins."""
        word = self.text(i)
        if word in HEADS:
            end = self.fellow[i + 1]
            if word in ('if', 'while'):
                self.add('negation', (i + 1, i + 1, '(!('), (end, end, '))'))
            self.expression(i + 2, end)
            return end + 1
        if word in ('else', 'do', '{', '}', ';'):
            return i + 1
        if word in ('case', 'default') or self.text(i + 1) == ':':
            while self.text(i) != ':':
                i += 1
            return i + 1
        end = i
        while self.text(end) != ';':
            if end >= len(self.tokens):
                raise ValueError('%s, line %d: a statement without an end' % (
                    self.function.name, self.tokens[i].line + 1))
            end = self.fellow.get(end, end) + 1
        if word != 'REVDIAL_ASSERT':
            self.simple(i, end)
        return end + 1

    def simple(self, i, end):
        word = self.text(i)
        if word == 'return':
            self.expression(i + 1, end)
            if end > i + 1:
                return
        elif self.is_declaration(i):
            self.expression(i + 1, end)
            return
        else:
            self.add('return', (i, end, 'return;' if self.function.is_void else 'return 0;'))
            self.expression(i, end)
        self.add('deletion', (i, end, ';'))

    def is_declaration(self, i):
        is_word = [bool(re.match(r'[A-Za-z_]', self.text(n))) for n in (i, i + 1)]
        return self.text(i) in TYPES or all(is_word) or (
            is_word[0] and self.text(i + 1) == '*' and self.text(i - 1) in ';{}')

    def expression(self, i, end):
        while i < end:
            self.operator(i)
            if self.text(i + 1) == '(' and re.match(r'[a-z_]\w*$', self.text(i)) and \
                    self.text(i) not in HEADS + ('sizeof', 'return'):
                self.arguments(i + 1, self.fellow[i + 1])
            i += 1

    def is_binary(self, i):
        """Blanks or ends of lines are on both sides."""
        token = self.tokens[i]
        line = self.lines[token.line]
        return line[token.column - 1:token.column] == ' ' and \
            line[token.column + len(token.text):][:1] in ('', ' ')

    def operator(self, i):
        text = self.text(i)
        if re.match(r'\d', text):
            self.number(i)
        elif text == '!':
            self.add('logic', (i, i, ''))
        elif text in STEP:
            self.add('arithmetic', (i, i, STEP[text]))
        elif self.is_binary(i):
            for other in RELATION.get(text, ()):
                self.add('relation', (i, i, other))
            if text in ARITHMETIC:
                self.add('arithmetic', (i, i, ARITHMETIC[text]))
            if text in LOGIC:
                self.add('logic', (i, i, LOGIC[text]))

    def number(self, i):
        match = re.fullmatch(r'(0[xX][0-9a-fA-F]+|\d+)([uUlL]*)', self.text(i))
        if not match:
            return
        digits = match.group(1)
        value = int(digits, 8 if re.match(r'0\d', digits) else 0)
        for other in (value + 1, value - 1):
            self.add('constant', (i, i, '%d%s' % (other, match.group(2))))

    def arguments(self, i, end):
        """Neighbours that are not the same, each on one line."""
        spans, first = [], i + 1
        n = first
        while n <= end:
            if n == end or self.text(n) == ',':
                if n > first:
                    spans.append((first, n - 1))
                first = n + 1
            n = self.fellow.get(n, n) + 1
        for (a, b), (c, d) in zip(spans, spans[1:]):
            left, right = self.spell(a, b), self.spell(c, d)
            if left and right and left != right:
                self.add('arguments', (a, b, right), (c, d, left))

    def spell(self, a, b):
        first, last = self.tokens[a], self.tokens[b]
        if first.line != last.line:
            return None
        return self.lines[first.line][first.column:last.column + len(last.text)]


def all_mutants(lines, names, ignored):
    """Every mutant of the file: {section: {kind: [mutants]}}"""
    found = {}
    for function in functions(lines, ignored):
        kinds = found.setdefault(names[function.first], {kind: [] for kind in KINDS})
        for mutant in Reader(lines, function).read():
            kinds[mutant.kind].append(mutant)
    return found


def apply(lines, mutant):
    """The lines that a mutant changes: {line: text}. No line moves."""
    changed = {}
    for first, last, text in reversed(mutant.edits):
        end = changed.get(last.line, lines[last.line])[last.column + len(last.text):]
        for n in range(first.line, last.line):
            changed[n] = ''
        begin = lines[first.line][:first.column] + text
        if first.line == last.line:
            changed[first.line] = begin + end
        else:
            changed[first.line], changed[last.line] = begin, end
    return changed
