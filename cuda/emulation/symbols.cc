#include "cuda/emulation/symbols.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>

namespace forerun::emulation {
namespace {

struct Image {
  std::uintptr_t base = 0;
  std::uintptr_t end = 0;
  std::string path;
  std::map<std::uintptr_t, std::string> functions;  // address -> mangled name
  std::vector<StaticObject> static_objects;
};

std::string Demangled(const char* name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(
      abi::__cxa_demangle(name, nullptr, nullptr, &status), std::free);
  return status == 0 ? text.get() : name;
}

template <class T>
const T* At(const std::string& file, std::size_t offset, std::size_t count = 1) {
  if (offset > file.size() || count * sizeof(T) > file.size() - offset) return nullptr;
  return reinterpret_cast<const T*>(file.data() + offset);
}

void AddSymbol(const Elf64_Sym& symbol, const char* name, bool is_zeroed, Image& image) {
  const auto address = image.base + symbol.st_value;
  const unsigned type = ELF64_ST_TYPE(symbol.st_info);
  if (symbol.st_value == 0 || symbol.st_size == 0) return;
  if (type == STT_FUNC) image.functions.emplace(address, name);
  // The mangled name of what is local to a function begins so.
  if (type == STT_OBJECT && is_zeroed && std::strncmp(name, "_ZZ", 3) == 0) {
    image.static_objects.push_back({address, address + symbol.st_size, name});
  }
}

void ReadSymbols(Image& image) {
  std::ifstream stream(image.path, std::ios::binary);
  const std::string file((std::istreambuf_iterator<char>(stream)),
                         std::istreambuf_iterator<char>());
  const auto* header = At<Elf64_Ehdr>(file, 0);
  if (header == nullptr || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) return;
  if (header->e_type == ET_EXEC) image.base = 0;
  const auto* segments = At<Elf64_Phdr>(file, header->e_phoff, header->e_phnum);
  for (int i = 0; segments != nullptr && i < header->e_phnum; ++i) {
    if (segments[i].p_type != PT_LOAD) continue;
    image.end = std::max(image.end, image.base + segments[i].p_vaddr + segments[i].p_memsz);
  }
  const auto* sections = At<Elf64_Shdr>(file, header->e_shoff, header->e_shnum);
  if (sections == nullptr) return;
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB || sections[i].sh_link >= header->e_shnum) continue;
    const std::size_t count = sections[i].sh_size / sizeof(Elf64_Sym);
    const auto* symbols = At<Elf64_Sym>(file, sections[i].sh_offset, count);
    const Elf64_Shdr& names = sections[sections[i].sh_link];
    const char* const text = At<char>(file, names.sh_offset, names.sh_size);
    for (std::size_t s = 0; symbols != nullptr && text != nullptr && s < count; ++s) {
      const auto section = symbols[s].st_shndx;
      if (symbols[s].st_name >= names.sh_size || section >= header->e_shnum) continue;
      AddSymbol(symbols[s], text + symbols[s].st_name, sections[section].sh_type == SHT_NOBITS,
                image);
    }
  }
  std::sort(image.static_objects.begin(), image.static_objects.end(),
            [](const StaticObject& a, const StaticObject& b) { return a.begin < b.begin; });
}

const Image& ThisImage() {
  static const Image image = [] {
    Image found;
    Dl_info info{};
    if (dladdr(reinterpret_cast<const void*>(&ReadSymbols), &info) == 0) return found;
    found.base = reinterpret_cast<std::uintptr_t>(info.dli_fbase);
    found.path = info.dli_fname;
    // The program's own name may be relative to a directory that it has left.
    if (found.path.find('/') == std::string::npos || found.path[0] != '/') {
      char self[4096];
      const ssize_t length = readlink("/proc/self/exe", self, sizeof self);
      if (length > 0) found.path.assign(self, static_cast<std::size_t>(length));
    }
    ReadSymbols(found);
    return found;
  }();
  return image;
}

}  // namespace

std::string FunctionName(const void* function) {
  const auto& functions = ThisImage().functions;
  const auto found = functions.find(reinterpret_cast<std::uintptr_t>(function));
  if (found == functions.end()) {
    char text[32];
    std::snprintf(text, sizeof text, "%p", function);
    return text;
  }
  std::string name = Demangled(found->second.c_str());
  if (const auto parameters = name.rfind('('); parameters != std::string::npos) {
    name.resize(parameters);
  }
  return name;
}

const std::vector<StaticObject>& StaticObjects() { return ThisImage().static_objects; }

std::string StaticObject::Name() const { return Demangled(symbol.c_str()); }

std::vector<StaticObject> StaticObjectsOf(const void* function) {
  const auto found = ThisImage().functions.find(reinterpret_cast<std::uintptr_t>(function));
  if (found == ThisImage().functions.end()) return {};
  const std::string prefix = "_ZZ" + found->second.substr(2) + "E";
  std::vector<StaticObject> objects;
  for (const StaticObject& object : ThisImage().static_objects) {
    if (object.symbol.starts_with(prefix)) objects.push_back(object);
  }
  return objects;
}

bool IsInImage(const void* address) {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  return at >= ThisImage().base && at < ThisImage().end;
}

std::uint32_t OffsetOf(const void* code) {
  return static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(code) - ThisImage().base);
}

std::string LinesOf(std::uint32_t offset) {
  char address[32];
  std::snprintf(address, sizeof address, "0x%x", offset - 1);
  const std::string command =
      "addr2line -i -s -e '" + ThisImage().path + "' " + address + " 2>/dev/null";
  std::string lines;
  if (FILE* pipe = popen(command.c_str(), "r")) {
    char line[512];
    while (std::fgets(line, sizeof line, pipe) != nullptr) {
      std::string text(line, std::strcspn(line, "\n"));
      if (const auto extra = text.find(" (disc"); extra != std::string::npos) text.resize(extra);
      lines += (lines.empty() ? "" : " < ") + text;
    }
    pclose(pipe);
  }
  return lines.empty() ? address : lines;
}

}  // namespace forerun::emulation
