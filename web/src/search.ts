const plain = (text: string) => text.normalize("NFC").toLowerCase().replaceAll(/\s+/g, "");

/** Those whose name or id has every word of the query, whatever its case and spaces. */
export function matching<H extends { name: string; hospitalId: string }>(all: readonly H[], query: string): H[] {
  const words = query.split(/\s+/).map(plain).filter(Boolean);
  return all.filter((one) => {
    const text = plain(`${one.name} ${one.hospitalId}`);
    return words.every((word) => text.includes(word));
  });
}
