// A palette's table of all 2^24 colours (32 MB) in cells of 4x4x4 colours (6 MB), so that more of
// it lies in the processor's own memory. A cell names three clusters, and which of them is nearest
// to each of its colours. Hardly any cell has more: the others are looked up in the table itself.

#include <cstddef>
#include <cstdint>

namespace {

constexpr int SIDE = 4, NAMED = 3;   // colours along a cell's side; clusters that it names
constexpr int CELLS = 256 / SIDE;    // cells along a side of the table
constexpr int PICKS = SIDE * SIDE;   // of 2 bits, in a word: the colours of one red
constexpr uint16_t UNKNOWN = 65535;  // palette.py: no token; in a cell, "look in the table"
constexpr int BLOCK = 1024;          // colours whose places are computed together, by vectors

struct Cell {
    uint16_t tokens[NAMED + 1];  // the last is always UNKNOWN, as all are before the cell is filled
    uint32_t picks[SIDE];        // by red; 2 bits for each green and blue: which of the tokens
};

uint32_t packed(uint32_t red, uint32_t green, uint32_t blue) {
    return red << 16 | green << 8 | blue;
}

uint32_t cell_of(uint32_t red, uint32_t green, uint32_t blue) {
    return (red / SIDE * CELLS + green / SIDE) * CELLS + blue / SIDE;
}

void fill_cell(const uint16_t* table, uint32_t corner, Cell& cell) {
    int named = 0;
    for (int red = 0; red < SIDE; red++) {
        uint32_t picks = 0;
        for (int pick = 0; pick < PICKS; pick++) {
            uint16_t token = table[corner + packed(red, pick / SIDE, pick % SIDE)];
            int which = 0;
            while (which < named && cell.tokens[which] != token) which++;
            if (which == named && named < NAMED) cell.tokens[named++] = token;
            picks |= uint32_t(which) << 2 * pick;
        }
        // After the tokens: another thread that sees these picks sees their tokens, too.
        __atomic_store_n(&cell.picks[red], picks, __ATOMIC_RELEASE);
    }
}

}  // namespace

// Fill the cells of the cube of `side`^3 colours whose darkest is `corner`; the table is filled
// there. Other threads may look up meanwhile, or fill the same.
extern "C" void fill(const uint16_t* table, uint32_t corner, int side, Cell* cells) {
    for (int red = 0; red < side; red += SIDE)
        for (int green = 0; green < side; green += SIDE)
            for (int blue = 0; blue < side; blue += SIDE) {
                uint32_t at = corner + packed(red, green, blue);
                fill_cell(table, at, cells[cell_of(at >> 16, at >> 8 & 255, at & 255)]);
            }
}

// The tokens of `n` colours, 3 bytes each, UNKNOWN where the table is not filled; whether all are
// known.
extern "C" bool look_up(const uint8_t* colors, int64_t n, const uint16_t* table, const Cell* cells,
                        uint16_t* tokens, int threads) {
    auto first = reinterpret_cast<const char*>(cells);
    bool known = true;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16) reduction(&& : known)
    for (int64_t start = 0; start < n; start += BLOCK) {
        int count = n - start < BLOCK ? n - start : BLOCK;
        const uint8_t* color = colors + 3 * start;
        uint32_t cell[BLOCK], word[BLOCK];  // bytes from the first cell to the colour's; its picks
        uint8_t shift[BLOCK];               // bits within the picks
        for (int i = 0; i < count; i++) {
            uint32_t red = color[3 * i], green = color[3 * i + 1], blue = color[3 * i + 2];
            cell[i] = cell_of(red, green, blue) * sizeof(Cell);
            word[i] = cell[i] + offsetof(Cell, picks) + red % SIDE * sizeof(uint32_t);
            shift[i] = 2 * (green % SIDE * SIDE + blue % SIDE);
        }
        for (int i = 0; i < count; i++) {
            auto picks = reinterpret_cast<const uint32_t*>(first + word[i]);
            auto named = reinterpret_cast<const uint16_t*>(first + cell[i]);
            uint16_t token = named[__atomic_load_n(picks, __ATOMIC_ACQUIRE) >> shift[i] & 3];
            if (__builtin_expect(token == UNKNOWN, 0)) {
                const uint8_t* c = color + 3 * i;
                token = table[packed(c[0], c[1], c[2])];
                known = known && token != UNKNOWN;
            }
            tokens[start + i] = token;
        }
    }
    return known;
}
