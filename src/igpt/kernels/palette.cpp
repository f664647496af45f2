// A palette's table of all 2^24 colours (32 MB) in cells of 4x4x4 colours (6 MB), which the
// processor's own memory holds. Most cells have one nearest cluster, and hardly any more than four;
// the colours of those are looked up in the table itself.

#include <cstdint>

namespace {

constexpr int SIDE = 4, FOUR = 4;       // colours along a side; clusters that a cell can name
constexpr int PICKS = 16;               // of 2 bits, in a word: the colours of one red
constexpr uint16_t UNKNOWN = 65535;     // palette.py: no token; here also "look in the table"
constexpr int BLOCK = 1024;             // colours whose places are computed together, by vectors

struct Cell {
    uint16_t tokens[FOUR];  // the first is UNKNOWN for a cell that is not filled, or names too few
    uint32_t picks[SIDE];   // by red; 2 bits for each green and blue: which of the tokens
};

uint32_t packed(uint32_t red, uint32_t green, uint32_t blue) { return red << 16 | green << 8 | blue; }

// Whether the cell whose darkest colour is `corner` has at most four tokens, which `cell` then names.
bool name(const uint16_t* table, uint32_t corner, Cell& cell) {
    int named = 0;
    for (int red = 0; red < SIDE; red++) {
        cell.picks[red] = 0;
        for (int pick = 0; pick < PICKS; pick++) {
            uint16_t token = table[corner + packed(red, pick / SIDE, pick % SIDE)];
            int which = 0;
            while (which < named && cell.tokens[which] != token) which++;
            if (which == FOUR) return false;
            if (which == named) cell.tokens[named++] = token;
            cell.picks[red] |= uint32_t(which) << 2 * pick;
        }
    }
    return true;
}

}  // namespace

// Fill the cells of the cube of `side`^3 colours whose darkest is `corner`; the table is filled there.
extern "C" void fill(const uint16_t* table, uint32_t corner, int side, Cell* cells) {
    for (int red = 0; red < side; red += SIDE)
        for (int green = 0; green < side; green += SIDE)
            for (int blue = 0; blue < side; blue += SIDE) {
                uint32_t at = corner + packed(red, green, blue);
                Cell filled = {};
                if (!name(table, at, filled)) continue;
                Cell& cell = cells[(at >> 18) << 12 | (at >> 10 & 63) << 6 | (at >> 2 & 63)];
                for (int i = 0; i < SIDE; i++) cell.picks[i] = filled.picks[i];
                for (int i = 1; i < FOUR; i++) cell.tokens[i] = filled.tokens[i];
                // Last: another thread that sees this token sees the rest, too.
                __atomic_store_n(&cell.tokens[0], filled.tokens[0], __ATOMIC_RELEASE);
            }
}

// The tokens of `n` colours, 3 bytes each, UNKNOWN where the table is not filled; whether all are known.
extern "C" bool look_up(const uint8_t* colors, int64_t n, const uint16_t* table, const Cell* cells,
                        uint16_t* tokens, int threads) {
    bool known = true;
#pragma omp parallel for num_threads(threads) reduction(&& : known)
    for (int64_t start = 0; start < n; start += BLOCK) {
        int count = n - start < BLOCK ? n - start : BLOCK;
        const uint8_t* color = colors + 3 * start;
        uint32_t at[BLOCK];
        uint8_t within[BLOCK];
        for (int i = 0; i < count; i++) {
            uint32_t red = color[3 * i], green = color[3 * i + 1], blue = color[3 * i + 2];
            at[i] = (red >> 2) << 12 | (green >> 2) << 6 | blue >> 2;
            within[i] = (red & 3) << 4 | (green & 3) << 2 | (blue & 3);
        }
        for (int i = 0; i < count; i++) {
            const Cell& cell = cells[at[i]];
            uint16_t token = __atomic_load_n(&cell.tokens[0], __ATOMIC_ACQUIRE);
            if (__builtin_expect(token == UNKNOWN, 0)) {
                const uint8_t* c = color + 3 * i;
                token = table[packed(c[0], c[1], c[2])];
                known = known && token != UNKNOWN;
            } else {
                token = cell.tokens[cell.picks[within[i] >> 4] >> 2 * (within[i] & 15) & 3];
            }
            tokens[start + i] = token;
        }
    }
    return known;
}
